"""metrics.jsonl as columns in memory, read on from where the last look ended. Torch-free.

The same rule as toolkit.runs.metrics.read_metrics: an attempt that resumed at a step takes the place of all
that earlier ones wrote from there on. Of a run of ai-toolkit its loss_log.db is read instead.
"""

from __future__ import annotations

import json
import math
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from web.runs.loss_log import LOSS_LOG, LossLogIndex
from web.runs.plain_files import open_plain
from web.runs.series import Series, put, thinned

_CHUNK = 4 * 1024 * 1024
_NO_SERIES = frozenset({"step", "attempt", "time", "schema_version"})


class MetricsIndex:
    """The metrics of one run. generation: changes when points that were read before no longer hold."""

    def __init__(self, path: Path, generation: int = 0) -> None:
        self.path, self.generation = path, generation
        self.series: dict[str, Series] = {}
        self._offset = 0
        self._attempt = 0
        self._inode: int | None = None
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Read what has been written since the last look."""
        with self._lock:
            try:
                info = self.path.lstat()
            except FileNotFoundError:
                info = None
            if info is None or not stat.S_ISREG(info.st_mode):
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
        with open_plain(self.path) as file:
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
                put(self.series, key, step, at, float(value))

    @property
    def keys(self) -> list[str]:
        """The names of the series."""
        return sorted(self.series)

    def points(self, key: str, since_step: int = -1, max_points: int = 2000) -> list[list[Any]]:
        """[step, time, value] of the points behind `since_step`; of more than `max_points` the extremes."""
        with self._lock:
            columns = self.series.get(key, Series()).behind(since_step)
        return thinned(columns, max_points)


Index = MetricsIndex | LossLogIndex


class MetricsIndexes:
    """The indexes of the runs that were looked at last."""

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._known: OrderedDict[Path, Index] = OrderedDict()

    def of(self, path: Path) -> Index:
        """The index of a metrics.jsonl, up to date."""
        loss_log = path.with_name(LOSS_LOG)
        with self._lock:
            index = self._known.get(path)
            foreign = loss_log.is_file() and not path.exists()
            if index is None or isinstance(index, LossLogIndex) != foreign:
                generation = 0 if index is None else index.generation + 1
                made = LossLogIndex(loss_log, generation) if foreign else MetricsIndex(path, generation)
                index = self._known[path] = made
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
