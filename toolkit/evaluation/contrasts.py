"""Which other texts an image is measured with. Torch-free.

Every choice is a function of (seed, the image's content, the text), never of the order or number of images
that are measured: the others of an image are those of the whole data set whose hash with it is smallest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy
from numpy.typing import NDArray

from toolkit.seeding import keyed_seed

Ablation = Literal["none", "zero", "blank", "shuffle", "random"]
ABLATIONS: tuple[str, ...] = get_args(Ablation)


class CaptionPool:
    """The distinct captions of a whole data set, empty ones aside, from which those of others are chosen.

    Rendezvous hashing: every image ranks all texts by a hash of both, so a larger pool replaces few of its
    choices. Texts are hashed once; an image costs one pass over the hashes.
    """

    def __init__(self, captions: Iterable[str], *, seed: int) -> None:
        self.texts = sorted({text for text in captions if text})
        self._seed = seed
        hashes = [keyed_seed("eval-caption", seed, text) for text in self.texts]
        self._hashes: NDArray[numpy.uint64] = numpy.array(hashes, dtype=numpy.uint64)
        self._places = {text: place for place, text in enumerate(self.texts)}

    def __len__(self) -> int:
        return len(self.texts)

    def num_others(self, caption: str, count: int) -> int:
        """How many captions of other images there are, at most `count`."""
        return min(count, len(self.texts) - (caption in self._places))

    def others(self, caption: str, *, content: str, count: int) -> list[str]:
        """`count` captions of other images, distinct and not the image's own; fewer if there are no more."""
        own = self._places.get(caption)
        count = self.num_others(caption, count)
        if not count:
            return []
        key = numpy.uint64(keyed_seed("eval-other", self._seed, content))
        ranks = _mixed(self._hashes ^ key)
        if own is not None:
            ranks[own] = numpy.iinfo(numpy.uint64).max
        first = numpy.argpartition(ranks, count - 1)[:count]
        return [self.texts[place] for place in first[numpy.argsort(ranks[first], kind="stable")]]

    def shuffled(self, caption: str, *, content: str) -> str | None:
        """The caption of some other image, or None if all have the same."""
        found = self.others(caption, content=f"shuffle {content}", count=1)
        return found[0] if found else None


def _mixed(values: NDArray[numpy.uint64]) -> NDArray[numpy.uint64]:
    """Numbers without any order left in them: the finalizer of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return values ^ (values >> numpy.uint64(31))


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
