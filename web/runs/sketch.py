"""A curve as the points of an SVG polyline, for pages without scripts. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 800, 240


@dataclass(frozen=True, slots=True)
class Sketch:
    """points: for a viewBox of WIDTH x HEIGHT. low, high: the values at its edges."""

    points: str
    low: float
    high: float
    first: int
    last: int


def sketch(rows: Sequence[Sequence[Any]]) -> Sketch | None:
    """A series of [step, time, value], or None where it has fewer than two values."""
    pairs = [(step, value) for step, _time, value in rows if value is not None]
    if len(pairs) < 2:
        return None
    low, high = min(value for _, value in pairs), max(value for _, value in pairs)
    first, last = pairs[0][0], pairs[-1][0]
    tall = (high - low) or 1.0
    points = " ".join(
        f"{(step - first) / (last - first) * WIDTH:.1f},{HEIGHT - (value - low) / tall * HEIGHT:.1f}"
        for step, value in pairs
    )
    return Sketch(points, low, high, first, last)
