"""What was read, given again for as long as nothing changed what it was read from. Torch-free."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")


class DatabaseMemo:
    """Answers of a database, until anybody writes to it, this process or another.

    SQLite counts the writes that a connection did not make itself (PRAGMA data_version), so the one here only
    ever asks. Values are shared between threads and must not be changed.
    """

    def __init__(self, path: Path, most: int = 1024) -> None:
        self.most = most
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._lock = threading.Lock()
        self._version = -1
        self._kept: dict[Hashable, Any] = {}

    def get(self, key: Hashable, read: Callable[[], Value]) -> Value:
        """What `read` gave for this key since the last write, or gives now; what it raises is not kept."""
        with self._lock:
            # Asked before reading: a write in between makes the next version another one.
            version = self._connection.execute("PRAGMA data_version").fetchone()[0]
            if version != self._version:
                self._kept.clear()
                self._version = version
            if key in self._kept:
                known: Value = self._kept[key]
                return known
        value = read()
        with self._lock:
            if version == self._version and len(self._kept) < self.most:
                self._kept[key] = value
        return value

    def forget(self) -> None:
        """Keep nothing of what was read so far."""
        with self._lock:
            self._kept.clear()

    def close(self) -> None:
        """Close the connection; nothing can be asked any more."""
        with self._lock:
            self._kept.clear()
            self._connection.close()


@dataclass(slots=True)
class FolderMemo:
    """What was read from trees of folders, until one of their folders changes or seconds have passed.

    A file that is added, removed, renamed or replaced changes its folder; one that is written in place does
    not, which is what the seconds are for.
    """

    seconds: float = 2.0
    # A folder that changed just before it was read may change again within its clock's tick.
    settled_s: float = 0.05
    _known: dict[Hashable, tuple[float, dict[Path, int], Any]] = field(default_factory=dict)

    def get(self, key: Hashable, read: Callable[[], tuple[Value, Iterable[Path]]]) -> Value:
        """The value of a key; read() gives it with every folder that it looked into."""
        known = self._known.get(key)
        now = time.monotonic()
        if known is not None and now - known[0] < self.seconds and known[1] == _marks(known[1]):
            kept: Value = known[2]
            return kept
        begun = time.time()
        value, folders = read()
        marks = _marks(folders)
        # Nor is anything kept that changed while it was read.
        if marks is not None and begun - max(marks.values(), default=0) / 1e9 > self.settled_s:
            self._known[key] = (now, marks, value)
        else:
            self._known.pop(key, None)
        return value


def _marks(folders: Iterable[Path]) -> dict[Path, int] | None:
    """When each folder last changed, in nanoseconds; None if one is gone."""
    try:
        return {folder: folder.stat().st_mtime_ns for folder in folders}
    except OSError:
        return None
