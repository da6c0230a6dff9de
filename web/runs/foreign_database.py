"""SQLite databases of other programs, read without leaving a trace in their folders. Torch-free."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from toolkit.errors import Problem, UserError

_MAGIC = b"SQLite format 3\0"
_WAL = 2  # the read version in the header, byte 19
_SECONDS = 20.0
_BUSY_S = 3.0
_MOST_COPIED = 512 << 20  # bytes


@contextmanager
def reading(path: Path, seconds: float = _SECONDS) -> Iterator[sqlite3.Connection]:
    """A connection that can read the database at `path`, and nothing else; its queries end after `seconds`.

    Even `mode=ro` leaves -wal and -shm files beside a database in WAL mode that nobody has open. So one
    without a -wal is opened as immutable, and one with a -wal that a crash left is read in a copy. A database
    that is in use is read beside its writer. Raises UserError, one line, for what cannot be read.
    """
    _check(path)
    wal, changed = _wal_of(path), has_changes(path)
    if wal.is_symlink():
        raise _bad(path, f"{wal.name} is a link, and links are not followed", "give the files themselves")
    if changed and not path.with_name(f"{path.name}-shm").exists():
        with tempfile.TemporaryDirectory(prefix="aitk-import-") as folder:
            copy = Path(folder) / "copy.db"
            _copy(path, wal, copy)
            with _open(path, f"file:{quote(str(copy))}?mode=ro", seconds) as connection:
                yield connection
        return
    immutable = "&immutable=1" if _is_wal(path) and not changed else ""
    with _open(path, f"file:{quote(str(path))}?mode=ro{immutable}", seconds) as connection:
        yield connection


def has_changes(path: Path) -> bool:
    """Whether there are changes beside a database that are not in it: it is in use, or its program died."""
    wal = _wal_of(path)
    return wal.is_file() and wal.stat().st_size > 0


def plain_tables(connection: sqlite3.Connection, names: Sequence[str]) -> dict[str, list[str]]:
    """table -> its stored columns, of those tables that are there and hold what they say.

    Views, tables of an extension and columns that are generated could compute anything; they are left out.
    """
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE TABLE%'"
    known = {name for (name,) in connection.execute(query).fetchall()} & set(names)
    return {
        name: [row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (name,))]
        for name in known
    }


def _copy(path: Path, wal: Path, copy: Path) -> None:
    """A database and its -wal in another place. Raises UserError."""
    try:
        size = path.stat().st_size + wal.stat().st_size
        if size > _MOST_COPIED:
            message = f"is too large to be read while changes wait beside it ({size >> 20} MiB)"
            raise _bad(path, message, "open it once with its own program, which takes them in")
        shutil.copyfile(path, copy)
        shutil.copyfile(wal, f"{copy}-wal", follow_symlinks=False)
    except OSError as error:
        message = f"cannot be copied to be read: {error.strerror or error}"
        raise _bad(path, message, "make room in the folder for temporary files") from None


def _wal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


@contextmanager
def _open(path: Path, uri: str, seconds: float) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None)) as connection:
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
            deadline = time.monotonic() + seconds
            connection.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
            yield connection
    except sqlite3.Error as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: sqlite3.Error) -> UserError:
    """The one line for an error of SQLite."""
    text = str(error)
    if "interrupted" in text:
        return _bad(path, "takes too long to read", "copy the rows that matter to a new database")
    if "locked" in text or "busy" in text:
        return _bad(path, "is locked by the program that writes it", "try again, or stop that program first")
    if "readonly" in text or "unable to open" in text:
        message = f"cannot be read without writing to its folder ({text})"
        return _bad(path, message, "open it once with its own program, or copy it with its -journal file")
    if isinstance(error, sqlite3.DatabaseError) and "no such" not in text:
        return _bad(path, f"is damaged ({text})", "take a backup, or repair it with: sqlite3 FILE .recover")
    return _bad(path, f"is not as expected ({text})", "check that it is the right file")


def _check(path: Path) -> None:
    """Raise UserError unless `path` is a plain file that begins as a SQLite database does."""
    if path.is_symlink():
        raise _bad(path, "is a link, and links are not followed", "give the file itself")
    if not path.is_file():
        raise _bad(path, "does not exist", "check the path")
    try:
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror or error}", "check its permissions") from None
    if head != _MAGIC:
        what = "is empty" if not head else "is no SQLite database"
        raise _bad(path, what, "check that it is the right file")


def _is_wal(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(20)
    return len(head) == 20 and head[19] == _WAL


def _bad(path: Path, message: str, remedy: str) -> UserError:
    return UserError(Problem("import.database", message, file=str(path), remedy=remedy))
