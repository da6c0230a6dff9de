"""What was read is given again only while it is still true."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from sqlalchemy import insert, select, update

from web.database import Database
from web.remembered import FolderMemo
from web.schema import counters


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(tmp_path / "web.db")
    with database.write() as tx:
        tx.execute(insert(counters).values(name="mine", value=1))
    return database


def value_of(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(select(counters.c.value).where(counters.c.name == "mine")).scalar_one())


def test_an_answer_is_kept_until_anybody_writes(database: Database) -> None:
    asked = []

    def ask() -> int:
        return database.memo.get("mine", lambda: asked.append(1) or value_of(database))

    assert [ask(), ask()] == [1, 1]
    assert len(asked) == 1
    with database.write() as tx:
        tx.execute(update(counters).where(counters.c.name == "mine").values(value=2))
    assert ask() == 2
    other = Database(database.path)  # as another process would
    with other.write() as tx:
        tx.execute(update(counters).where(counters.c.name == "mine").values(value=3))
    assert ask() == 3
    other.close()


def test_what_was_read_before_a_write_is_not_kept_after_it(database: Database) -> None:
    def read_and_write() -> int:
        value = value_of(database)
        with database.write() as tx:  # somebody else, between the reading and the keeping
            tx.execute(update(counters).where(counters.c.name == "mine").values(value=value + 1))
        return value

    assert database.memo.get("mine", read_and_write) == 1
    assert database.memo.get("mine", lambda: value_of(database)) == 2


def test_an_error_is_not_kept(database: Database) -> None:
    def fail() -> int:
        raise LookupError

    with pytest.raises(LookupError):
        database.memo.get("mine", fail)
    assert database.memo.get("mine", lambda: 5) == 5


def test_a_tree_is_read_again_when_a_folder_of_it_changes(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    memo, reads = FolderMemo(seconds=60), []

    def names() -> list[str]:
        def read() -> tuple[list[str], list[Path]]:
            reads.append(1)
            return sorted(path.name for path in inner.iterdir()), [tmp_path, inner]

        return memo.get("names", read)

    past = time.time() - 10
    for folder in (tmp_path, inner):
        os.utime(folder, (past, past))
    assert names() == names() == []
    assert len(reads) == 1
    (inner / "a.png").touch()
    assert names() == ["a.png"]
    (inner / "b.png").touch()  # within the same tick of the clock, perhaps
    assert names() == ["a.png", "b.png"]


def test_a_tree_is_read_again_after_seconds_and_when_it_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.utime(folder, (0, 0))
    values = iter(range(9))
    never, always = FolderMemo(seconds=0), FolderMemo(seconds=60)
    assert [never.get("key", lambda: (next(values), [folder])) for _ in range(2)] == [0, 1]
    assert [always.get("key", lambda: (next(values), [folder])) for _ in range(2)] == [2, 2]
    folder.rmdir()
    assert always.get("key", lambda: (next(values), [folder])) == 3


def test_what_changed_while_it_was_read_is_not_kept(tmp_path: Path) -> None:
    memo = FolderMemo(seconds=60, settled_s=0.0)
    os.utime(tmp_path, (0, 0))

    def read() -> tuple[list[str], list[Path]]:
        names = sorted(path.name for path in tmp_path.iterdir())
        if not names:
            (tmp_path / "late.png").touch()  # somebody else, behind the reader's back
        return names, [tmp_path]

    assert memo.get("names", read) == []
    assert memo.get("names", read) == ["late.png"]
