"""Which other texts an image is measured with. Torch-free.

Every choice is a function of (seed, the image's content, the text), never of the order or number of images
that are measured: the others of an image are those of the whole data set whose hash with it is smallest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from toolkit.seeding import keyed_seed

Ablation = Literal["none", "zero", "blank", "shuffle", "random"]
ABLATIONS: tuple[str, ...] = get_args(Ablation)


def other_captions(caption: str, pool: Sequence[str], *, seed: int, content: str, count: int) -> list[str]:
    """`count` captions of other images, distinct and not the image's own; fewer if the pool has no more.

    pool: the captions of the whole data set. Rendezvous hashing: a larger pool replaces few of them.
    """
    candidates = {text for text in pool if text and text != caption}
    return sorted(candidates, key=lambda text: (keyed_seed("eval-other", seed, content, text), text))[:count]


def shuffled_caption(caption: str, pool: Sequence[str], *, seed: int, content: str) -> str | None:
    """The caption of some other image, or None if all have the same."""
    found = other_captions(caption, pool, seed=seed, content=f"shuffle {content}", count=1)
    return found[0] if found else None


def in_sample(content: str, *, seed: int, fraction: float) -> bool:
    """Whether an image belongs to a random share of a data set; a larger share contains every smaller one."""
    return _place(seed, content) < fraction


def sampled(contents: Sequence[str], *, seed: int, fraction: float, limit: int | None) -> list[int]:
    """Indices of the images to measure, in their order: a share of them, and at most `limit`."""
    chosen = [i for i, content in enumerate(contents) if in_sample(content, seed=seed, fraction=fraction)]
    if limit is not None and len(chosen) > limit:
        chosen = sorted(sorted(chosen, key=lambda i: (_place(seed, contents[i]), i))[:limit])
    return chosen


def _place(seed: int, content: str) -> float:
    """A number in [0, 1) of an image's own."""
    return keyed_seed("eval-sample", seed, content) / 2**63


def design_hash(parts: Iterable[object]) -> str:
    """What measurements depend on, as 16 hex digits: those of another hash are never mixed in."""
    return hashlib.sha256("\x1f".join(map(repr, parts)).encode()).hexdigest()[:16]
