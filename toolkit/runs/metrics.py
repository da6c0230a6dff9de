"""metrics.jsonl: one JSON line for every logged step, with the attempt that made it. Torch-free."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from toolkit.runs import atomic
from toolkit.runs.layout import SCHEMA_VERSION, check_schema

Row = dict[str, Any]
_FLUSH_SECONDS = 1.0
_FLUSH_ROWS = 64


class MetricsWriter:
    """Appends rows to `path`; a line torn by a crash is repaired first. Context manager.

    Raises RunError where the file cannot be written.

    Rows reach the file together, at the latest with the first row after a second; `flush` before a checkpoint
    or a long pause.
    """

    def __init__(self, path: Path, attempt: int | None = None) -> None:
        self.path = Path(path)
        self._lines: list[str] = []
        self._flushed = time.monotonic()
        binary = getattr(os, "O_BINARY", 0)  # Windows would write \r\n
        with atomic.reporting(self.path):
            self.attempt = next_attempt(self.path) if attempt is None else attempt
            _repair(self.path)
            self._file = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | binary, 0o644)
            if self.path.stat().st_size == 0:
                self._lines.append(atomic.to_json({"schema_version": SCHEMA_VERSION}))
        self._begin()

    def new_attempt(self) -> None:
        """Begin the next attempt: its rows take the place of those from its first step on."""
        self.attempt += 1
        self._begin()

    def _begin(self) -> None:
        self._lines.append(atomic.to_json({"attempt": self.attempt, "event": "start", "time": time.time()}))
        self.flush()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, step: int, **values: Any) -> None:
        """Add a row for `step`; a value that is NaN or infinite becomes null and is named in `non_finite`."""
        row = {"attempt": self.attempt, "step": step, "time": round(time.time(), 3), **values}
        floats = {key: value for key, value in values.items() if isinstance(value, float)}
        broken = [key for key, value in floats.items() if not math.isfinite(value)]
        if broken:
            row["non_finite"] = broken
        self._lines.append(atomic.to_json(row))
        if len(self._lines) >= _FLUSH_ROWS or time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand all rows to the system, in one piece, so that a reader never sees half of a row."""
        self._flushed = time.monotonic()
        if self._lines:
            data = memoryview(("\n".join(self._lines) + "\n").encode("utf-8"))
            self._lines.clear()
            with atomic.reporting(self.path, size=len(data)):
                while data:
                    data = data[os.write(self._file, data) :]

    def close(self) -> None:
        """Flush to the disk and close; a second call does nothing."""
        if self._file < 0:
            return
        try:
            self.flush()
            with atomic.reporting(self.path):
                os.fsync(self._file)
        finally:
            os.close(self._file)
            self._file = -1


def read_metrics(path: Path) -> list[Row]:
    """Rows in order of steps, of every step the attempt that counts; torn lines are left out.

    An attempt that resumed at an earlier step takes the place of all that older ones wrote from there on.
    Raises RunError if a newer program wrote the file.
    """
    by_step: dict[int, Row] = {}
    for row in _lines(path):
        step = row.get("step")
        if not isinstance(step, int):
            continue
        old = by_step.get(step)
        if old is None or _attempt(old) < _attempt(row):
            by_step[step] = row
        elif _attempt(old) == _attempt(row):
            by_step[step] = {**old, **row}  # a step's validation may follow in a row of its own
    return live_rows(by_step.values())


def live_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows in order of steps, without those that a later attempt left behind by resuming before them."""
    kept: list[Row] = []
    first_later: dict[int, int] = {}
    ordered = sorted(rows, key=lambda row: row["step"])
    for row in ordered:
        first_later.setdefault(_attempt(row), row["step"])
    for row in ordered:
        later = [step for attempt, step in first_later.items() if attempt > _attempt(row)]
        if not later or row["step"] < min(later):
            kept.append(row)
    return kept


def next_attempt(path: Path) -> int:
    """The number of the attempt that would now start: 1 for a new run."""
    return 1 + max((_attempt(row) for row in _lines(path)), default=0)


def _attempt(row: Row) -> int:
    attempt = row.get("attempt")
    return attempt if isinstance(attempt, int) else 0


def _lines(path: Path) -> Iterator[Row]:
    try:
        data = atomic.read_bytes(path)
    except FileNotFoundError:
        return
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            check_schema(row.get("schema_version"), path)
            yield row


def _repair(path: Path) -> None:
    """End the file with a whole line: a last line that lacks its newline gets it, half a line is cut off."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    if not data or data.endswith(b"\n"):
        return
    start = data.rfind(b"\n") + 1
    try:
        json.loads(data[start:])
    except ValueError:
        os.truncate(path, start)
    else:
        with path.open("ab") as file:
            file.write(b"\n")
