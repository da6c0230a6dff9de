"""Keyed randomness: every draw comes from a generator seeded by a hash of what it is for.

A draw is a pure function of its key, so it does not depend on the number of workers, ranks or
micro-batches, nor on what was drawn before it; resuming needs no generator state. Torch-free until a
torch generator is asked for.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Key = str | int | float | None


def keyed_seed(stream: str, *key: Key) -> int:
    """A seed in [0, 2**63) from the stream's name and its key, equal on every machine."""
    text = "\x1f".join([stream, *map(repr, key)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def keyed_generator(stream: str, *key: Key) -> torch.Generator:
    """A CPU torch generator for one purpose, for example ("noise", seed, epoch, item_id)."""
    import torch

    return torch.Generator().manual_seed(keyed_seed(stream, *key))


def keyed_random(stream: str, *key: Key) -> random.Random:
    """A Python random generator for one purpose (shuffles, caption dropout, crops)."""
    return random.Random(keyed_seed(stream, *key))


def seed_global(*key: Key) -> None:
    """Seed python, numpy and torch for code that cannot be keyed (nn.Dropout, third-party libraries)."""
    import numpy
    import torch

    seed = keyed_seed("global", *key)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    # Not torch.manual_seed: for devices that are not in use it puts the call off, with a traceback to
    # remember it by, which costs 2 ms and memory for good every time.
    torch.default_generator.manual_seed(seed)
    for device in (torch.cuda, torch.xpu):
        if device.is_initialized():
            device.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
