"""One scheduler for a data folder: a kernel lock that ends with its process, however that ends."""

from __future__ import annotations

import os
from pathlib import Path


class SchedulerLock:
    """Held by the one server that starts jobs; others try again until it is free."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self) -> bool:
        """Whether this server holds the lock now."""
        if self._handle is not None:
            return True
        handle = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o644)
        if not _lock(handle):
            os.close(handle)
            return False
        self._handle = handle
        return True

    def release(self) -> None:
        """Let another server have it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _lock(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
