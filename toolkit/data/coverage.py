"""How often each picture was shown: a function of the order and of the position in it. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from toolkit.data.findings import first_names
from toolkit.data.items import MediaItem
from toolkit.data.order import EpochOrder

Picture = tuple[str, str]  # (dataset, path)


@dataclass(frozen=True)
class Coverage:
    """Picture -> how often it was shown, over its resolutions, flips and repeats; least often first."""

    times: dict[Picture, int]

    @cached_property
    def num_showings(self) -> int:
        """Showings of all pictures together."""
        return sum(self.times.values())

    @cached_property
    def least(self) -> list[str]:
        """The pictures that were shown least often, if others were shown more."""
        fewest, most = min(self.times.values()), max(self.times.values())
        return [path for (_, path), times in self.times.items() if times == fewest < most]

    @property
    def summary(self) -> str:
        """One line: how often, and the pictures that were shown least."""
        fewest, most = min(self.times.values()), max(self.times.values())
        often = f"{fewest} to {most} times (median {median(self.times.values()):g})"
        line = f"{len(self.times)} pictures were shown {often if most > fewest else f'{_times(most)} each'}"
        if not self.least:
            return line
        shown = f"only {_times(fewest)}" if fewest else "never"
        return f"{line}; {shown}: {first_names(Path(path).name for path in self.least)}"

    def as_json(self) -> dict[str, Any]:
        """Plain data: the figures, and every picture."""
        values = self.times.values()
        return {
            "pictures": len(self.times),
            "showings": self.num_showings,
            "min": min(values),
            "median": median(values),
            "max": max(values),
            "never": [path for (_, path), times in self.times.items() if times == 0],
            "times": [
                {"dataset": dataset, "file": path, "times": times}
                for (dataset, path), times in self.times.items()
            ],
        }


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def count_showings(
    items: Sequence[MediaItem], order: EpochOrder, position: int, left_out: Collection[int] = ()
) -> Coverage:
    """What the first `position` batches of the order of these items showed, on all ranks together.

    left_out: numbers of batches that were passed over.
    """
    epochs, offset = divmod(position, order.num_batches)
    pictures = [(item.dataset, str(item.path)) for item in items]
    times = Counter({picture: count * epochs for picture, count in Counter(pictures).items()})
    for chunk in order.chunks(epochs)[:offset]:
        times.update(pictures[index] for index in chunk)
    for epoch, number in (divmod(each, order.num_batches) for each in left_out if each < position):
        times.subtract(pictures[index] for index in order.chunks(epoch)[number])
    return Coverage(dict(sorted(times.items(), key=lambda entry: (entry[1], entry[0]))))
