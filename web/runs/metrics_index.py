"""metrics.jsonl as columns in memory, read on from where the last look ended. Torch-free.

The same rule as toolkit.runs.metrics.read_metrics: an attempt that resumed at a step takes the place of all
that earlier ones wrote from there on. numpy is imported on first use.
"""

from __future__ import annotations

import json
import math
import threading
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CHUNK = 4 * 1024 * 1024
_MOST_KEYS = 200
_NO_SERIES = frozenset({"step", "attempt", "time", "schema_version"})


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

    def cut(self, step: int) -> bool:
        """Forget the points from `step` on; whether there were any."""
        at = bisect_left(self.steps, step)
        there = at < len(self.steps)
        del self.steps[at:], self.times[at:], self.values[at:]
        return there


class MetricsIndex:
    """The metrics of one run. generation: changes when points that were read before no longer hold."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = 0
        self.series: dict[str, Series] = {}
        self._offset = 0
        self._attempt = 0
        self._inode: int | None = None
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Read what has been written since the last look."""
        with self._lock:
            try:
                info = self.path.stat()
            except FileNotFoundError:
                self._restart(None)
                return
            if info.st_size < self._offset or info.st_ino != self._inode:
                self._restart(info.st_ino)
            if info.st_size > self._offset:
                self._read_on()

    def _restart(self, inode: int | None) -> None:
        if self.series:
            self.generation += 1
        self.series, self._offset, self._attempt, self._inode = {}, 0, 0, inode

    def _read_on(self) -> None:
        rest = b""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            while chunk := file.read(_CHUNK):
                whole, newline, rest = (rest + chunk).rpartition(b"\n")
                self._offset += len(whole) + len(newline)
                for line in whole.split(b"\n"):
                    self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
        except ValueError:
            return  # torn by a crash
        if not isinstance(row, dict) or not isinstance(step := row.get("step"), int):
            return
        attempt = row.get("attempt")
        if isinstance(attempt, int) and attempt > self._attempt:
            self._attempt = attempt
            cuts = [series.cut(step) for series in self.series.values()]
            if any(cuts):
                self.generation += 1
        time = row.get("time")
        at = float(time) if isinstance(time, int | float) else math.nan
        broken = row.get("non_finite")
        for key, value in row.items():
            if key in _NO_SERIES or isinstance(value, bool):
                continue
            if value is None and isinstance(broken, list) and key in broken:
                value = math.nan
            if isinstance(value, int | float):
                self._put(key, step, at, value)

    def _put(self, key: str, step: int, time: float, value: float) -> None:
        series = self.series.get(key)
        if series is None:
            if len(self.series) >= _MOST_KEYS:
                return
            series = self.series[key] = Series()
        series.put(step, time, float(value))

    @property
    def keys(self) -> list[str]:
        """The names of the series."""
        return sorted(self.series)

    def points(self, key: str, since_step: int = -1, max_points: int = 2000) -> list[list[Any]]:
        """[step, time, value] of the points behind `since_step`; of more than `max_points` the extremes."""
        import numpy as np

        with self._lock:
            series = self.series.get(key)
            if series is None:
                return []
            start = bisect_left(series.steps, since_step + 1)
            steps, times, values = (
                np.array(column[start:]) for column in (series.steps, series.times, series.values)
            )
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


class MetricsIndexes:
    """The indexes of the runs that were looked at last."""

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._known: OrderedDict[Path, MetricsIndex] = OrderedDict()

    def of(self, path: Path) -> MetricsIndex:
        """The index of a metrics.jsonl, up to date."""
        with self._lock:
            index = self._known.setdefault(path, MetricsIndex(path))
            self._known.move_to_end(path)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        index.refresh()
        return index

    def forget(self, paths: Iterable[Path]) -> None:
        """Let go of the indexes of runs that were deleted."""
        with self._lock:
            for path in paths:
                self._known.pop(path, None)
