"""Which size a picture is trained at, and how it is placed there. Torch-free.

Buckets are computed, not listed: sides are multiples of a step, the area stays within resolution squared,
and only the largest such sizes count, so that few buckets cover every aspect up to MAX_ASPECT.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt, log

from toolkit.data.items import Bucket, Placement

MAX_ASPECT = 4.0  # a longer strip is cropped to this
STEPS_PER_SIDE = 16  # a finer step would leave hardly two pictures in one bucket


def _floor_to(value: int, multiple: int) -> int:
    """The largest multiple not above value, at least one."""
    return max(multiple, value // multiple * multiple)


def _step(side: int, size_multiple: int) -> int:
    return _floor_to(side // STEPS_PER_SIDE, size_multiple)


@lru_cache(maxsize=4096)
def bucket_family(resolution: int, size_multiple: int) -> tuple[Bucket, ...]:
    """Every bucket of a resolution, square first, then by aspect; symmetric in width and height."""
    step = _step(resolution, size_multiple)
    area = max(resolution, step) ** 2
    shapes = set()
    for short in range(step, isqrt(area) + 1, step):
        longest = min(area // short, int(short * MAX_ASPECT))
        shapes.add((_floor_to(longest, step), short))
    for long in range(_floor_to(isqrt(area), step), int(isqrt(area) * MAX_ASPECT**0.5) + 1, step):
        shapes.add((long, _floor_to(min(area // long, long), step)))
    shapes = {(w, h) for w, h in shapes if w <= MAX_ASPECT * h and w * h <= area}
    # Of two with one aspect only the larger: the smaller would never win.
    largest = {w / h: (w, h) for w, h in sorted(shapes)}
    both = {size for w, h in largest.values() for size in ((w, h), (h, w))}
    return tuple(Bucket(w, h) for w, h in sorted(both, key=lambda size: (abs(log(size[0] / size[1])), size)))


def _affordable(width: int, height: int, resolution: int, size_multiple: int) -> int:
    """The resolution, or the largest step of it whose square a smaller picture can fill."""
    if width * height >= resolution**2:
        return resolution
    side = isqrt(width * height)
    step = _step(resolution, size_multiple)
    return _floor_to(side, step if side >= step else size_multiple)


@lru_cache(maxsize=4096)
def choose_bucket(
    width: int, height: int, resolution: int, size_multiple: int, *, square: bool = False
) -> Bucket:
    """The bucket that keeps most of a picture: area within resolution**2 and within the picture's own.

    Sides are multiples of size_multiple, at least one. square: resolution x resolution for all.
    Raises ValueError if a number is not positive.
    """
    if min(width, height, resolution, size_multiple) < 1:
        raise ValueError(f"sizes must be positive: {width} x {height}, {resolution}, {size_multiple}")
    if square:
        side = _floor_to(resolution, size_multiple)
        return Bucket(side, side)
    aspect = width / height
    family = bucket_family(_affordable(width, height, resolution, size_multiple), size_multiple)

    def cost(bucket: Bucket) -> tuple[float, int, Bucket]:
        loss = abs(log(aspect / (bucket.width / bucket.height)))
        return round(loss, 9), -bucket.width * bucket.height, bucket

    return min(family, key=cost)


def place(
    width: int, height: int, bucket: Bucket, *, flip_x: bool = False, flip_y: bool = False
) -> Placement:
    """Scale a picture until it just covers the bucket, and cut the bucket out of its centre."""
    scaled_width, scaled_height = bucket.width, bucket.height
    if width * bucket.height > height * bucket.width:
        scaled_width = max(bucket.width, round(width * bucket.height / height))
    else:
        scaled_height = max(bucket.height, round(height * bucket.width / width))
    left, top = (scaled_width - bucket.width) // 2, (scaled_height - bucket.height) // 2
    return Placement(scaled_width, scaled_height, left, top, flip_x, flip_y)


def enlargement(width: int, height: int, bucket: Bucket) -> float:
    """The factor by which a picture must be scaled to cover its bucket; above 1 it gets blurred."""
    return max(bucket.width / width, bucket.height / height)
