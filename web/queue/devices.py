"""Names of devices, which are also the names of the lanes: gpu:0, cpu:0, mps:0. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable

_DEVICE = re.compile(r"(gpu|cpu|mps):(\d{1,2})", re.ASCII)


def parse_devices(names: Iterable[str]) -> tuple[str, ...]:
    """The devices, each once, in order of kind and number. Raises ValueError for what is none.

    >>> parse_devices(["gpu:1", " gpu:0", "gpu:1"])
    ('gpu:0', 'gpu:1')
    """
    found = set()
    for name in names:
        match = _DEVICE.fullmatch(name.strip())
        if match is None:
            raise ValueError(f"{name!r} is no device; write gpu:0, gpu:1 or cpu:0")
        found.add((match[1], int(match[2])))
    return tuple(f"{kind}:{number}" for kind, number in sorted(found))


def visible_devices(devices: Iterable[str]) -> str:
    """What CUDA_VISIBLE_DEVICES must say so that a job sees its GPUs only; "" hides them all."""
    pairs = (device.split(":") for device in devices)
    return ",".join(number for kind, number in pairs if kind == "gpu")
