"""What was measured of the images of a data set. Torch-free."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy

from toolkit.data.items import MediaItem
from toolkit.evaluation.edits import Edit
from toolkit.evaluation.statistics import Floats, log_ratios

OWN, BLANK, ABLATED = "own", "blank", "ablated"
OTHER = "other:"


def content_of(item: MediaItem) -> str:
    """What stands for an image in its draws: the bytes of its file, and how it is cut."""
    place = item.placement
    cut = (place.scaled_width, place.scaled_height, place.left, place.top, place.flip_x, place.flip_y)
    return f"{item.sha256} {item.bucket.width}x{item.bucket.height} {cut}"


def key_of(item: MediaItem) -> str:
    """What stands for an image with its caption: equal ones are measured once."""
    return hashlib.sha256(f"{content_of(item)}\x1f{item.caption}".encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """An exchange that may fit better, and its losses (1 + C, F) above those of what it has to beat.

    That is the own caption, the empty one and, where that is another, the own without what is exchanged; at
    levels t (F,), on draws that had no part in choosing it.
    """

    edit: Edit
    losses: Floats
    t: Floats

    def log_ratios(self) -> Floats:
        """log loss(changed) - log loss(each of the others) (C, F): below 0 where it fits better."""
        return log_ratios(self.losses[:1], self.losses[1:])


@dataclass
class Outcome:
    """What was measured of one image: names of its conditions, losses (A, D) and levels t (D,).

    As float32, which is what they are measured in: there may be many images.

    content: what its draws depend on. key: that and its caption. texts: what each condition said, None for
    one without words. edits: changed captions, with losses (E, first draws) beside them.
    """

    item: MediaItem
    content: str
    key: str
    names: list[str]
    texts: list[str | None]
    losses: Floats
    t: Floats
    edits: list[Edit] = field(default_factory=list)
    edit_losses: Floats | None = None
    base_losses: Floats | None = None
    suggestion: Suggestion | None = None

    def of(self, name: str) -> Floats:
        """The losses (D,) under one condition. Raises ValueError if it was not measured."""
        found: Floats = self.losses[self.names.index(name)].astype(numpy.float64)
        return found

    @property
    def others(self) -> Floats:
        """The losses (K, D) under captions of other images."""
        which = [i for i, name in enumerate(self.names) if name.startswith(OTHER)]
        found: Floats = self.losses[which].astype(numpy.float64)
        return found

    @property
    def num_draws(self) -> int:
        """Draws of each condition."""
        return int(self.losses.shape[1])

    def gains(self) -> Floats:
        """log loss(blank) - log loss(own) of each draw (D,): positive where the caption helped."""
        return log_ratios(self.of(BLANK), self.of(OWN))


class Outcomes(Sequence[Outcome]):
    """The outcomes of images, in their order, each made anew whenever it is looked at.

    read: (item, its number of draws) -> its outcome, from the disk. What is held in memory for an image is
    its item and `num_draws`, so that many images cost hardly more than few.
    """

    def __init__(self, items: Sequence[MediaItem], read: Callable[[MediaItem, int], Outcome]) -> None:
        self.items = items
        self.num_draws = array("L", [0]) * len(items)
        self._read = read

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Outcome: ...

    @overload
    def __getitem__(self, index: slice) -> list[Outcome]: ...

    def __getitem__(self, index: int | slice) -> Outcome | list[Outcome]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return self._read(self.items[index], self.num_draws[index])
