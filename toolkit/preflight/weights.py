"""How large what is trained will be, counted from the headers of weight files. Torch-free.

Nothing is loaded: a safetensors file begins with the names and shapes of all its tensors.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Shapes = dict[str, tuple[int, ...]]  # name of a tensor -> its shape

_LONGEST_HEADER = 100 << 20
# What reading a header raises that is none.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error)
# Parts of a module's name that tell where it lies; see toolkit.networks.targets for the rule itself.
_BLOCKS = ("transformer_blocks", "single_transformer_blocks")
_AROUND_BLOCKS = ("proj_in", "proj_out")  # of a UNet's transformers
_OUTSIDE = ("resnets", "downsamplers", "upsamplers")
_ENCODER_LEAVES = frozenset(
    ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")
)
# The components of a file in the original layout of Stable Diffusion.
_ORIGINAL = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text_encoder",
    "conditioner.embedders.0.": "text_encoder",
    "conditioner.embedders.1.": "text_encoder_2",
}
# Numbers of optimizer state for each weight, in bytes; what is not here is taken for Adam's.
_STATE_BYTES = {
    "adamw": 8.0, "adam": 8.0, "adamw8bit": 2.0, "adam8bit": 2.0, "lion8bit": 1.0, "lion": 4.0,
    "sgd": 4.0, "adagrad": 4.0, "adafactor": 0.1, "prodigy": 16.0,
}  # fmt: skip
_PICKLE_PROTOCOLS = (b"\2", b"\3", b"\4", b"\5")
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a config says of a network that decides its size."""

    type: str
    rank: int
    conv_rank: int | None = None
    transformer_only: bool = True
    attn_only: bool = False
    only_if_contains: Sequence[str] = ()
    ignore_if_contains: Sequence[str] = ()


def read_header(path: Path) -> Shapes | None:
    """The tensors of a safetensors file; None if it is none."""
    try:
        _, entries = _entries(path)
        return {name: tuple(int(side) for side in entry["shape"]) for name, entry in entries.items()}
    except _DAMAGED:
        return None


def is_cut_off(path: Path) -> bool:
    """Whether a safetensors file is shorter than its header says, as after a download that broke off."""
    try:
        start, entries = _entries(path)
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        return path.stat().st_size < start + end
    except _DAMAGED:
        return False  # it is no such file, which is another matter


def may_be_pickled(path: Path) -> bool:
    """Whether a file begins as one that torch saved: as a zip, or, in its older format, as a pickle."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return False
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in _PICKLE_PROTOCOLS)


def _entries(path: Path) -> tuple[int, dict[str, Any]]:
    """(where the data begin, name of a tensor -> what the header says of it). Raises one of _DAMAGED."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _LONGEST_HEADER:
            raise ValueError(f"{path} has no header of a safetensors file")
        header = json.loads(file.read(length))
    return 8 + length, {name: entry for name, entry in header.items() if name != "__metadata__"}


def read_shapes(model: Path, parts: Sequence[str]) -> dict[str, Shapes] | None:
    """component -> its tensors, of a diffusers folder or a single file; None where it cannot be told.

    parts: the components of a folder. Formats other than safetensors are not read.
    """
    if model.is_file():
        shapes = read_header(model) if model.suffix == ".safetensors" else None
        return None if not shapes else _apart(shapes)
    found: dict[str, Shapes] = {}
    for part in parts:
        headers = [read_header(path) for path in sorted((model / part).glob("*.safetensors"))]
        if not headers or any(header is None for header in headers):
            return None
        found[part] = {name: shape for header in headers if header for name, shape in header.items()}
    return found


def _apart(shapes: Shapes) -> dict[str, Shapes]:
    """The components of one file, names cut to what stands in the component."""
    found: dict[str, Shapes] = {}
    for name, shape in shapes.items():
        for prefix, part in _ORIGINAL.items():
            if name.startswith(prefix):
                found.setdefault(part, {})[name.removeprefix(prefix)] = shape
    return found


def num_weights(components: Mapping[str, Shapes]) -> int:
    """How many numbers the components hold."""
    return sum(math.prod(shape) for shapes in components.values() for shape in shapes.values())


def adapter_weights(components: Mapping[str, Shapes], adapter: Adapter) -> int | None:
    """How many numbers a network on these components has; None for types that are not predicted."""
    if adapter.type == "lokr":
        return None
    return sum(
        _size(shape, adapter)
        for component, shapes in components.items()
        for name, shape in _targets(component, shapes, adapter)
        if _passes(f"{component}.{name}", adapter)
    )


def _targets(component: str, shapes: Shapes, adapter: Adapter) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the modules of a component that get an adapter."""
    encoder = component.startswith("text_encoder")
    for name, shape in shapes.items():
        if not name.endswith(".weight") or not _is_adaptable(shape, adapter.conv_rank is not None):
            continue
        path = name.removesuffix(".weight").split(".")
        if adapter.attn_only and not any(_attends(step) for step in path):
            continue
        if path[-1] in _ENCODER_LEAVES if encoder else _is_inside(component, path, adapter):
            yield ".".join(path), shape


def _is_inside(component: str, path: list[str], adapter: Adapter) -> bool:
    wide = adapter.conv_rank is not None or not adapter.transformer_only
    blocks = any(step in _BLOCKS for step in path)
    around = path[-1] in _AROUND_BLOCKS and len(path) > 2
    outside = component == "transformer" or any(step in _OUTSIDE for step in path)
    return blocks or around or (wide and outside)


def _attends(step: str) -> bool:
    return step.startswith("attn") or step in ("self_attn", "SelfAttention")


def _is_adaptable(shape: tuple[int, ...], conv: bool) -> bool:
    """Whether a weight is a linear layer's (out, in), or a convolution's (out, in, k, k) that is adapted."""
    return len(shape) == 2 or (len(shape) == 4 and (conv or shape[2:] == (1, 1)))


def _passes(name: str, adapter: Adapter) -> bool:
    if any(part in name for part in adapter.ignore_if_contains):
        return False
    return not adapter.only_if_contains or any(part in name for part in adapter.only_if_contains)


def _size(shape: tuple[int, ...], adapter: Adapter) -> int:
    """Numbers of one adapted layer: down (rank, in * k * k), up (out, rank), and what the type adds."""
    spatial = len(shape) == 4 and shape[2:] != (1, 1)
    rank = (adapter.conv_rank or adapter.rank) if spatial else adapter.rank
    outputs, inputs = shape[0], math.prod(shape[1:])
    low_rank = rank * (inputs + outputs)
    extra = {"loha": low_rank, "dora": outputs}  # a second pair; a magnitude for each output
    return low_rank + extra.get(adapter.type, 0)


def state_bytes(num_trained: int, optimizer: str, *, ema: bool) -> int:
    """Size of one checkpoint: float32 weights, the optimizer's state, perhaps a moving average."""
    each = 4 + _STATE_BYTES.get(optimizer, 8.0) + (4 if ema else 0)
    return int(num_trained * each)
