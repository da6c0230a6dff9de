"""loss_log.db, in which ai-toolkit keeps the losses of a run, as the columns that pages draw. Torch-free."""

from __future__ import annotations

import logging
import math
import threading
import time
from pathlib import Path
from typing import Any

from toolkit.errors import UserError
from web.runs.foreign_database import plain_tables, reading
from web.runs.series import Series, put, thinned

logger = logging.getLogger(__name__)
LOSS_LOG = "loss_log.db"
# What our own runs call the same.
_OURS = {"loss/loss": "loss", "learning_rate": "lr"}
_COLUMNS = {"metrics": ("step", "key", "value_real"), "steps": ("step", "wall_time")}
_MOST_ROWS = 5_000_000
_QUERY = """
SELECT m.step, s.wall_time, substr(m.key, 1, 200), m.value_real
FROM metrics AS m LEFT JOIN steps AS s ON s.step = m.step
WHERE m.value_real IS NOT NULL ORDER BY m.step LIMIT ?
"""
_RETRY_S = 10.0  # after a look that failed: it may have been locked
_Stamp = tuple[int, int]


class LossLogIndex:
    """The losses of one run of ai-toolkit, in the form of a MetricsIndex; read anew when the file changes."""

    def __init__(self, path: Path, generation: int = 0) -> None:
        self.path, self.generation = path, generation
        self.series: dict[str, Series] = {}
        self._seen: list[_Stamp | None] | None = None
        self._retry_at: float | None = None
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Read the file if it has changed since the last look; one that cannot be read has no series."""
        with self._lock:
            now = [_stamp(self.path), _stamp(self.path.with_name(f"{LOSS_LOG}-wal"))]
            if now == self._seen and (self._retry_at is None or time.monotonic() < self._retry_at):
                return
            self._seen, self._retry_at = now, None
            self.generation += bool(self.series)
            try:
                self.series = read_series(self.path)
            except UserError as error:
                logger.warning("%s", error)
                self.series, self._retry_at = {}, time.monotonic() + _RETRY_S

    @property
    def keys(self) -> list[str]:
        """The names of the series."""
        return sorted(self.series)

    def points(self, key: str, since_step: int = -1, max_points: int = 2000) -> list[list[Any]]:
        """[step, time, value] of the points behind `since_step`; of more than `max_points` the extremes."""
        with self._lock:
            columns = self.series.get(key, Series()).behind(since_step)
        return thinned(columns, max_points)


def read_series(path: Path) -> dict[str, Series]:
    """name -> its points; names as our own runs have them. Raises UserError for what cannot be read."""
    found: dict[str, Series] = {}
    with reading(path) as connection:
        tables = plain_tables(connection, ("metrics", "steps"))
        if not all(set(columns) <= set(tables.get(name, ())) for name, columns in _COLUMNS.items()):
            return {}
        for step, at, key, value in connection.execute(_QUERY, (_MOST_ROWS,)):
            if not isinstance(step, int) or not isinstance(value, int | float) or not isinstance(key, str):
                continue
            moment = float(at) if isinstance(at, int | float) else math.nan
            put(found, _OURS.get(key, key), step, moment, float(value))
    return found


def last_step(path: Path) -> int | None:
    """The last step that the file knows, or None without a file that can be read."""
    if not path.is_file():
        return None
    try:
        with reading(path) as connection:
            if "step" not in plain_tables(connection, ("steps",)).get("steps", ()):
                return None
            row = connection.execute("SELECT max(step) FROM steps").fetchone()
    except UserError:
        return None
    return row[0] if isinstance(row[0], int) else None


def _stamp(path: Path) -> _Stamp | None:
    try:
        info = path.lstat()
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size
