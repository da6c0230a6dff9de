"""The server's database: SQLite in WAL mode, one writer at a time, updated by numbered migrations."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import QueuePool

from toolkit.errors import Problem, UserError
from web.remembered import DatabaseMemo

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_MS = 10_000
Listener = Callable[[list[str]], None]


class Transaction:
    """An open write: its connection, and the topics that whoever listens is told of once it is committed."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.execute = connection.execute
        self.topics: dict[str, None] = {}

    def touch(self, *topics: str) -> None:
        """Note that something changed: `jobs`, `job-<id>`, `deleted-<id>`, `queue` …"""
        self.topics.update(dict.fromkeys(topics))


class Database:
    """Opens `path`, made and migrated if need be. Raises UserError if a newer program wrote it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        migrate(path)
        self._readers = _engine(path, 8, "BEGIN")
        self._writer = _engine(path, 1, "BEGIN IMMEDIATE")
        self._writing = threading.RLock()
        self._listeners: list[Listener] = []
        self.memo = DatabaseMemo(path)

    def listen(self, listener: Listener) -> None:
        """Call `listener` with the topics of each committed write, in the thread that wrote."""
        self._listeners.append(listener)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the database."""
        with self._readers.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """The one write at a time: committed when the block ends, undone if it raises."""
        with self._writing:
            with self._writer.begin() as connection:
                transaction = Transaction(connection)
                yield transaction
            topics = list(transaction.topics)
        if topics:
            for listener in self._listeners:
                listener(topics)

    def close(self) -> None:
        """Close every connection."""
        self.memo.close()
        self._readers.dispose()
        self._writer.dispose()


def _engine(path: Path, size: int, begin: str) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=0,
        connect_args={"check_same_thread": False, "timeout": BUSY_MS / 1000},
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        _pragmas(connection)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # IMMEDIATE: a write that began as a read is refused at once if another came between.
        connection.exec_driver_sql(begin)

    return engine


def _pragmas(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    connection.execute("PRAGMA journal_mode = WAL")  # stays DELETE where the file system cannot
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def migrations() -> list[tuple[int, Path]]:
    """Every migration with its number, from 1 on without a gap."""
    found = sorted((int(path.name[:4]), path) for path in MIGRATIONS.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    assert [number for number, _ in found] == list(range(1, len(found) + 1)), "migrations have a gap"
    return found


def migrate(path: Path, until: int | None = None) -> int:
    """Bring the database at `path` to the newest version (or `until`); the version it had before.

    What was there is copied to `<name>.v<version>.bak` first. Raises UserError if it is newer than this
    program.
    """
    steps = migrations()
    newest = steps[-1][0] if until is None else until
    with closing(sqlite3.connect(path, timeout=BUSY_MS / 1000, isolation_level=None)) as connection:
        _pragmas(connection)
        version = _version(connection)
        if version > newest:
            message = f"was written by a newer version of this program ({version}, this one reads {newest})"
            remedy = "update the toolkit, or set AI_TOOLKIT_DATA to another folder"
            raise UserError(Problem("web.database", message, file=str(path), remedy=remedy))
        if 0 < version < newest:
            _back_up(connection, path.with_name(f"{path.name}.v{version}.bak"))
        for number, file in steps[version:newest]:
            _apply(connection, number, file.read_text(encoding="utf-8"))
    return version


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _apply(connection: sqlite3.Connection, number: int, script: str) -> None:
    """One migration as one transaction; does nothing if another server has just applied it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _version(connection) < number:
            for statement in script.split(";\n"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _back_up(connection: sqlite3.Connection, target: Path) -> None:
    with closing(sqlite3.connect(target)) as copy:
        connection.backup(copy)
