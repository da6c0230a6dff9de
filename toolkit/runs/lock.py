"""One run folder, one process: a lock file that works on NFS and knows dead holders. Torch-free."""

from __future__ import annotations

import errno
import json
import os
import secrets
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from toolkit.errors import Problem, RunError
from toolkit.runs import atomic
from toolkit.runs.layout import SCHEMA_VERSION
from toolkit.runs.process import ProcessIdentity, this_process

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
_EMPTY_SECONDS = 2.0  # how long a lock may be empty between its creation and its first write


@dataclass(frozen=True, slots=True)
class Holder:
    """What a lock file says: who holds it, since when, and a token that no other lock ever had."""

    process: ProcessIdentity
    token: str
    since: str

    def __str__(self) -> str:
        return f"process {self.process.pid} on {self.process.host} (since {self.since})"


class RunLock:
    """Context manager that owns `path`; `notes` says if a dead process's lock was taken over.

    Raises RunError if another process holds it, or may hold it on another host.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._token = ""
        self._pid = 0
        self._handle: int | None = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Create the lock file, taking it over from a process that is dead. Raises RunError."""
        while not self._create():
            with atomic.reporting(self.path):
                holder = self._read()
            if holder is None:
                continue  # released a moment ago
            self._refuse_unless_dead(holder)
            # Only who holds the claim named after this very lock may replace it; so of two processes that
            # found the same dead holder, the second cannot replace the first one's new lock.
            with RunLock(self.path.with_name(f"{self.path.name}.{holder.token}")):
                if self._read() == holder and self._create(replacing=True):
                    note = f"taken over from {holder}, which ended without releasing it"
                    self.notes.append(f"{self.path}: {note}")
                    return

    def release(self) -> None:
        """Remove the lock file if it is ours; a forked child and a second call do nothing."""
        if self._handle is None or self._pid != os.getpid():
            return
        handle, self._handle = self._handle, None
        if os.name == "nt":  # an open file cannot be removed there
            os.close(handle)
        with suppress(OSError, RunError):
            holder = self._read()
            if holder is not None and holder.token == self._token:
                self.path.unlink()
        if os.name != "nt":
            os.close(handle)

    def _create(self, *, replacing: bool = False) -> bool:
        """Make the lock file, with its content from its first moment on; False if there is one already.

        replacing: take the place of the one that is there.
        """
        if self.path.exists() and not replacing:
            return False
        self._token, self._pid = secrets.token_hex(8), os.getpid()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        content = {"schema_version": SCHEMA_VERSION, **asdict(this_process())}
        data = json.dumps(content | {"token": self._token, "since": since}).encode()
        with atomic.reporting(self.path):
            handle = _create_whole(self.path, data, replacing=replacing)
        if handle is None:
            return False
        self._handle = handle
        return True

    def _read(self) -> Holder | None:
        """The holder, or None if there is no lock. Raises RunError if the file makes no sense."""
        deadline = time.monotonic() + _EMPTY_SECONDS
        while True:
            try:
                return _parse(json.loads(atomic.read_bytes(self.path)))
            except FileNotFoundError:
                return None
            except (ValueError, KeyError, TypeError) as error:
                if time.monotonic() > deadline:
                    raise self._refusal("this lock file is empty or damaged") from error
            time.sleep(0.02)

    def _refuse_unless_dead(self, holder: Holder) -> None:
        running = _runs(holder, self.path)
        if running:
            raise self._refusal(f"the run is in use by {holder}")
        if running is None:
            raise self._refusal(f"the run is locked by {holder}; whether that still runs cannot be seen here")

    def _refusal(self, message: str) -> RunError:
        remedy = "choose another name, or stop that run; if it is certain that it has ended, delete this file"
        return RunError(Problem("run.locked", message, file=str(self.path), remedy=remedy))


def read_holder(path: Path) -> Holder | None:
    """Who holds the lock at `path`, or None; for watchers, so a file half written counts as none."""
    try:
        return _parse(json.loads(atomic.read_bytes(path)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def holder_runs(path: Path) -> bool | None:
    """Whether the process that holds the lock at `path` runs: False also without a lock, None if unknown."""
    holder = read_holder(path)
    return False if holder is None else _runs(holder, path)


def _runs(holder: Holder, path: Path) -> bool | None:
    running = holder.process.is_running()
    same_host = holder.process.host == this_process().host
    if running is None and same_host and _flock_is_free(path):
        return False  # left by a container that was restarted since
    return running


def _parse(content: dict[str, Any]) -> Holder:
    fields = {key: str(content[key]) for key in ("host", "boot_id", "namespace", "started")}
    process = ProcessIdentity(pid=int(content["pid"]), **fields)
    return Holder(process, str(content["token"]), str(content["since"]))


def _create_whole(path: Path, data: bytes, *, replacing: bool) -> int | None:
    """Create a locked file with its content, an open handle of it; None if it exists. Raises OSError.

    Written under another name and linked, or renamed over another one, into place: a process that is killed
    midway leaves no empty lock, which nobody could tell from one about to be written.
    """
    part = path if os.name == "nt" else atomic.beside(path)
    if part == path and replacing:  # an open file cannot be renamed there
        path.unlink(missing_ok=True)
    try:
        handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return None
    try:
        _flock(handle)
        os.write(handle, data)
        os.fsync(handle)
        if part != path and replacing:
            part.replace(path)
        elif part != path and not _link(part, path):
            os.close(handle)
            return None
    except BaseException:
        os.close(handle)
        part.unlink(missing_ok=True)
        raise
    return handle


def _link(part: Path, path: Path) -> bool:
    """Give a file its name; False if that is taken. Raises OSError."""
    try:
        os.link(part, path)
    except FileExistsError:
        return part.stat().st_nlink == 2  # NFS may have done it and lost its answer
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _rename_unless_taken(part, path)
    finally:
        part.unlink(missing_ok=True)
    return True


def _rename_unless_taken(part: Path, path: Path) -> bool:
    """The same on a file system without links; killed between its two steps it leaves an empty lock."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    part.replace(path)
    return True


def _flock(handle: int) -> bool | None:
    """Hold a kernel lock while the process lives. False: another holds it; None: there are none here."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _flock_is_free(path: Path) -> bool:
    """Whether it is certain that no process, in any container here, holds the kernel lock of `path`."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        return _flock(handle) is True
    finally:
        os.close(handle)
