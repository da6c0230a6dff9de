"""Where pictures are cut: at the middle, or anew in every epoch, around a point of interest. Torch-free.

A cut has the aspect of its bucket. It is drawn by (seed, epoch, item), so it depends on neither the batch nor
the run's past; masks and control pictures of an item follow it, because it is the item's placement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, floor

from toolkit.data.buckets import enlargement
from toolkit.data.items import Bucket, CropChoice, MediaItem, Placement
from toolkit.seeding import keyed_random

Box = tuple[float, float, float, float]  # left, top, right, bottom in a picture's own pixels

# What rounding to whole pixels may cost at the sides of a point of interest, in pixels of the bucket.
ROUNDING = 3


@dataclass(frozen=True, slots=True)
class CropSettings:
    """How the pictures of a dataset are cut.

    scale: the factor of their size at which pictures count. random_crop: at any place. random_scale: at any
    size from the bucket's own pixels to all that the bucket's aspect allows. own_size: without random_scale
    at the bucket's own pixels, instead of all of the picture. num_draws: epochs take so many cuts in turn;
    None: each epoch has its own. Pictures with a point of interest have place and size drawn around it.
    """

    scale: float = 1.0
    random_crop: bool = False
    random_scale: bool = False
    own_size: bool = False
    num_draws: int | None = None

    def counted(self, width: int, height: int) -> tuple[int, int]:
        """The size at which a picture counts when its bucket is chosen."""
        return max(1, round(width * self.scale)), max(1, round(height * self.scale))

    def choice(self, size: tuple[int, int], bucket: Bucket, poi: Box | None = None) -> CropChoice | None:
        """What is drawn for a picture of this size; None if it is always cut at its middle."""
        if not (self.random_crop or self.random_scale or poi):
            return None
        least = most = enlargement(*size, bucket)
        if self.random_scale or poi:
            most = max(least, self.scale)
        elif self.own_size:
            least = most = max(least, self.scale)
        if poi is not None:
            most = max(least, min(most, _largest_scale(poi, bucket)))
        return CropChoice(size, least, most, self.random_crop or poi is not None, poi, self.num_draws)


AT_THE_MIDDLE = CropSettings()


def _largest_scale(poi: Box, bucket: Bucket) -> float:
    """The factor at which a box of a picture still fits into the bucket."""
    sides = ((poi[2] - poi[0], bucket.width), (poi[3] - poi[1], bucket.height))
    return min((max(room - ROUNDING, 1) / side for side, room in sides if side > 0), default=float("inf"))


def _start(draw: float, length: int, side: int, held: tuple[float, float] | None, moves: bool) -> int:
    """Where a side is cut out of a length, by draw in [0, 1); around what is held, as far as it reaches."""
    first, last = (0, length - side) if moves else ((length - side) // 2,) * 2
    if held is not None:
        low, high = floor(held[0]), ceil(held[1])
        middle = (low + high - side) // 2
        first, last = (high - side, low) if high - side <= low else (middle, middle)
        first, last = (min(max(each, 0), length - side) for each in (first, last))
    return first + int(draw * (last - first + 1))


def draw_placement(
    choice: CropChoice, bucket: Bucket, before: Placement, draws: tuple[float, ...]
) -> Placement:
    """One cut, flipped as the placement before; draws: three numbers in [0, 1) for size, left and top."""
    width, height = choice.size
    scale = choice.least + draws[0] * (choice.most - choice.least)
    scaled = (max(bucket.width, round(width * scale)), max(bucket.height, round(height * scale)))
    held = None
    if choice.poi is not None:
        x, y = scaled[0] / width, scaled[1] / height
        held = ((choice.poi[0] * x, choice.poi[2] * x), (choice.poi[1] * y, choice.poi[3] * y))
    left = _start(draws[1], scaled[0], bucket.width, held and held[0], choice.moves)
    top = _start(draws[2], scaled[1], bucket.height, held and held[1], choice.moves)
    return replace(before, scaled_width=scaled[0], scaled_height=scaled[1], left=left, top=top)


def drawn(item: MediaItem, seed: int, epoch: int) -> MediaItem:
    """The item as it is cut in an epoch."""
    choice = item.crops
    if choice is None:
        return item
    turn = epoch if choice.num_draws is None else epoch % choice.num_draws
    rng = keyed_random("crop", seed, turn, item.id)
    draws = (rng.random(), rng.random(), rng.random())
    return replace(item, placement=draw_placement(choice, item.bucket, item.placement, draws))


def all_drawn(items: Iterable[MediaItem], seed: int) -> list[MediaItem]:
    """Every cut that the epochs of a run take from these items; the first one of those that never repeat."""
    return [
        drawn(item, seed, turn)
        for item in items
        for turn in range(1 if item.crops is None else item.crops.num_draws or 1)
    ]
