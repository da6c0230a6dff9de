"""Databases of other programs: read whole, whatever state they are in, and nothing is left beside them."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from testing.web.foreign_kit import add_losses, make_loss_log, tree
from toolkit.errors import UserError
from web.runs.foreign_database import reading
from web.runs.loss_log import LossLogIndex, last_step, read_series
from web.runs.metrics_index import MetricsIndex, MetricsIndexes


def test_the_losses_of_a_run_are_read_and_nothing_is_left(tmp_path):
    path = make_loss_log(tmp_path / "loss_log.db", 10)
    before = tree(tmp_path)
    series = read_series(path)
    assert sorted(series) == ["loss", "lr"]  # what our own runs call loss/loss and learning_rate
    assert list(series["loss"].values) == [1 / (step + 1) for step in range(11)]
    assert last_step(path) == 10
    assert tree(tmp_path) == before


def test_a_database_in_use_is_read_with_its_last_commit(tmp_path):
    path = make_loss_log(tmp_path / "loss_log.db", 10)
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    with writer:
        add_losses(writer, 11, 0.125)
    add_losses(writer, 12, 0.5)  # not committed
    assert (tmp_path / "loss_log.db-shm").exists()
    assert read_series(path)["loss"].values[-1] == 0.125 and last_step(path) == 11
    with writer:
        add_losses(writer, 13, 0.25)  # the reader has not stopped it
    writer.close()


def test_what_a_crash_left_in_the_wal_is_read_without_repairing_it(tmp_path):
    made, crashed = tmp_path / "made", tmp_path / "crashed"
    made.mkdir()
    crashed.mkdir()
    path = make_loss_log(made / "loss_log.db", 10)
    writer = sqlite3.connect(path)
    with writer:
        add_losses(writer, 11, 0.125)
    for name in ("loss_log.db", "loss_log.db-wal"):
        shutil.copy(made / name, crashed / name)
    writer.close()
    before = tree(crashed)
    assert last_step(crashed / "loss_log.db") == 11
    assert tree(crashed) == before


def bad_file(path: Path, kind: str) -> None:
    """Something at `path` that is no database that can be read."""
    if kind == "missing":
        return
    if kind == "link":
        path.symlink_to(make_loss_log(path.with_name("real.db"), 3))
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("no database" * 100)
    else:
        make_loss_log(path, 2000)
        data = bytearray(path.read_bytes())
        data[4096:] = b"\xff" * len(data[4096:])
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "says"),
    [("missing", "does not exist"), ("link", "is a link"), ("empty", "is empty"),
     ("text", "is no SQLite database"), ("damaged", "is damaged")],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(tmp_path, kind, says):
    path = tmp_path / "loss_log.db"
    bad_file(path, kind)
    with pytest.raises(UserError, match=says) as caught:
        read_series(path)
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_locked_database_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("web.runs.foreign_database._BUSY_S", 0.05)
    path = tmp_path / "old.db"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("CREATE TABLE steps (step INTEGER)")
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UserError, match="is locked"), reading(path) as connection:
        connection.execute("SELECT * FROM steps").fetchall()
    writer.close()


def test_a_database_that_computes_without_end_is_given_up(tmp_path):
    path = tmp_path / "loss_log.db"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE VIEW steps AS WITH RECURSIVE n(step) AS (SELECT 1 UNION ALL SELECT step + 1 FROM n)"
            " SELECT step FROM n"
        )
    with pytest.raises(UserError, match="takes too long"), reading(path, seconds=0.2) as connection:
        connection.execute("SELECT max(step) FROM steps").fetchone()


def test_it_cannot_be_written(tmp_path):
    path = make_loss_log(tmp_path / "loss_log.db", 3)
    with pytest.raises(UserError), reading(path) as connection:
        connection.execute("DELETE FROM metrics")
    assert last_step(path) == 3


def test_an_index_follows_the_file(tmp_path):
    index = LossLogIndex(make_loss_log(tmp_path / "loss_log.db", 10))
    index.refresh()
    first = index.generation
    assert index.keys == ["loss", "lr"] and index.points("loss", 8)[-1][0] == 10
    assert index.points("nothing") == []
    index.refresh()
    assert index.generation == first
    with sqlite3.connect(index.path) as writer:
        add_losses(writer, 11, 0.125)
    writer.close()
    index.refresh()
    assert index.points("loss")[-1][2] == 0.125 and index.generation > first
    index.path.write_text("damaged")
    index.refresh()
    assert index.keys == []


def test_a_run_of_ours_in_the_same_folder_takes_its_place(tmp_path):
    make_loss_log(tmp_path / "loss_log.db", 10)
    indexes = MetricsIndexes()
    path = tmp_path / "metrics.jsonl"
    assert isinstance(indexes.of(path), LossLogIndex)
    path.write_text('{"attempt": 1, "step": 1, "loss": 0.5}\n')
    found = indexes.of(path)
    assert isinstance(found, MetricsIndex) and found.points("loss")[0][2] == 0.5


def test_tables_that_compute_are_not_read(tmp_path):
    path = tmp_path / "loss_log.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE steps (step INTEGER, wall_time REAL)")
        connection.execute(
            "CREATE VIEW metrics AS SELECT 1 AS step, hex(zeroblob(100)) AS key, 0.5 AS value_real"
        )
    assert read_series(path) == {}
    with sqlite3.connect(path) as connection:
        connection.execute("DROP VIEW metrics")
        connection.execute(
            "CREATE TABLE metrics (step INTEGER, value_real REAL, key TEXT AS (hex(zeroblob(100))))"
        )
        connection.execute("INSERT INTO metrics (step, value_real) VALUES (1, 0.5)")
    assert read_series(path) == {}
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE VIEW steps AS SELECT 7 AS step")
    assert last_step(other) is None


def test_of_a_key_as_long_as_a_book_little_is_kept(tmp_path):
    path = make_loss_log(tmp_path / "loss_log.db", 1)
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO metrics (step, key, value_real) VALUES (1, ?, 0.5)", ("x" * 2_000_000,)
        )
    assert max(len(key) for key in read_series(path)) <= 200


def test_what_a_crash_left_is_copied_within_limits(tmp_path, monkeypatch):
    path = make_loss_log(tmp_path / "loss_log.db", 3)
    wal = path.with_name("loss_log.db-wal")
    wal.write_bytes(b"x" * 100)
    assert read_series(path)
    monkeypatch.setattr("web.runs.foreign_database._MOST_COPIED", 1000)
    with pytest.raises(UserError, match="too large to be read while"):
        read_series(path)
    monkeypatch.undo()
    wal.unlink()
    secret = tmp_path / "secret"
    secret.write_text("THE SECRET, elsewhere")
    wal.symlink_to(secret)
    with pytest.raises(UserError, match="loss_log.db-wal is a link"):
        read_series(path)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    path = make_loss_log(tmp_path / "loss_log.db", 3)
    path.with_name("loss_log.db-wal").write_bytes(b"x" * 100)

    def full(*_places: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(UserError, match="cannot be copied to be read: No space left on device"):
        read_series(path)


def test_a_lock_is_forgotten_once_it_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr("web.runs.foreign_database._BUSY_S", 0.05)
    monkeypatch.setattr("web.runs.loss_log._RETRY_S", 0.0)
    path = tmp_path / "loss_log.db"
    make_loss_log(path, 3)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    index = LossLogIndex(path)
    index.refresh()
    assert index.keys == []
    writer.execute("ROLLBACK")
    writer.close()
    index.refresh()
    assert index.keys == ["loss", "lr"]


def test_a_page_opened_before_there_were_losses_shows_them_when_they_come(tmp_path):
    indexes = MetricsIndexes()
    path = tmp_path / "metrics.jsonl"
    assert indexes.of(path).keys == []
    make_loss_log(tmp_path / "loss_log.db", 10)
    assert indexes.of(path).keys == ["loss", "lr"]


def test_whoever_takes_the_place_of_an_index_tells_so(tmp_path):
    make_loss_log(tmp_path / "loss_log.db", 10)
    indexes = MetricsIndexes()
    path = tmp_path / "metrics.jsonl"
    before = indexes.of(path).generation
    path.write_text('{"step": 1, "loss": 0.5, "attempt": 1, "time": 1.0}\n')
    assert indexes.of(path).generation > before
