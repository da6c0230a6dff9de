"""Series of points by step, and which of many points are drawn. Torch-free, numpy on first use."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

MOST_KEYS = 200  # series of one run
Columns = tuple[Any, ...]  # steps, times, values: arrays of numpy


@dataclass(slots=True)
class Series:
    """The points of one key in order of steps; what was not finite is NaN."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def put(self, step: int, time: float, value: float) -> None:
        """Add a point; one of the same step is replaced."""
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            self.times.append(time)
            self.values.append(value)
            return
        at = bisect_left(self.steps, step)
        if self.steps[at] == step:
            self.times[at], self.values[at] = time, value
        else:
            self.steps.insert(at, step)
            self.times.insert(at, time)
            self.values.insert(at, value)

    def behind(self, step: int) -> Columns:
        """Copies of the points behind `step`, as arrays."""
        import numpy as np

        start = bisect_left(self.steps, step + 1)
        return tuple(np.array(column[start:]) for column in (self.steps, self.times, self.values))

    def cut(self, step: int) -> bool:
        """Forget the points from `step` on; whether there were any."""
        at = bisect_left(self.steps, step)
        there = at < len(self.steps)
        del self.steps[at:], self.times[at:], self.values[at:]
        return there


def put(series: dict[str, Series], key: str, step: int, time: float, value: float) -> None:
    """Add a point to the series of a key; of more than MOST_KEYS keys the later ones are left out."""
    found = series.get(key)
    if found is None:
        if len(series) >= MOST_KEYS:
            return
        found = series[key] = Series()
    found.put(step, time, value)


def thinned(columns: Columns, max_points: int) -> list[list[Any]]:
    """[step, time, value] of each point, of more than `max_points` the extremes. columns: three (N,)."""
    steps, times, values = columns
    if len(steps) > max_points:
        chosen = extremes(values, max_points)
        steps, times, values = steps[chosen], times[chosen], values[chosen]
    rows = zip(steps.tolist(), times.tolist(), values.tolist(), strict=True)
    return [[step, _finite(time), _finite(value)] for step, time, value in rows]


def extremes(values: Any, max_points: int) -> Any:
    """Which of many values to draw: the smallest and the largest of each of max_points/2 stretches.

    values: (N,) with NaN where there is none -> indices in order, at most max_points of them.
    """
    import numpy as np

    buckets = max(1, (max_points - 1) // 2)
    edges = np.linspace(0, len(values), buckets + 1).astype(int)
    width = int(np.diff(edges).max())
    index = np.minimum(edges[:-1, None] + np.arange(width), edges[1:, None] - 1)
    window = values[index]
    low = np.where(np.isnan(window), np.inf, window).argmin(axis=1)
    high = np.where(np.isnan(window), -np.inf, window).argmax(axis=1)
    rows = np.arange(buckets)
    return np.unique(np.concatenate([index[rows, low], index[rows, high], [len(values) - 1]]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
