"""The database: migrated from an old one, written by one at a time, fast with many jobs."""

from __future__ import annotations

import shutil
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, insert, inspect

from testing.web.conftest import ROOT
from toolkit.errors import UserError
from web.database import Database, migrate, migrations
from web.queue.lanes import Lanes
from web.queue.listing import JobQuery, list_jobs
from web.queue.states import FOLLOWERS, STATES
from web.queue.store import JobStore
from web.queue.transitions import transition
from web.schema import METADATA, jobs

OLD = Path(__file__).parent / "data" / "version_1.sqlite"
DEVICES = ("gpu:0", "gpu:1", "cpu:0")


def test_an_old_database_is_brought_up_to_date_and_kept(tmp_path):
    path = tmp_path / "web.sqlite"
    shutil.copy(OLD, path)
    database = Database(path)
    store = JobStore(database, Lanes(database, DEVICES))
    done, waiting = store.get("a" * 12), store.get("b" * 12)
    assert (done.name, done.status, done.step, done.run_folders) == (
        "old_done",
        "completed",
        250,
        ("/old/output/old_done",),
    )
    assert (waiting.devices, waiting.stalled, waiting.lr) == (("gpu:0", "gpu:1"), False, None)
    assert store.events(done.id)[0]["reason"] == "created" and store.lanes.rev() == 9
    backup = tmp_path / "web.sqlite.v1.bak"
    assert sqlite3.connect(backup).execute("PRAGMA user_version").fetchone() == (1,)
    assert migrate(path) == len(migrations())


def test_migrations_make_what_the_queries_name(tmp_path):
    path = tmp_path / "new.sqlite"
    migrate(path)
    inspector = inspect(create_engine(f"sqlite:///{path}"))
    assert set(inspector.get_table_names()) == set(METADATA.tables)
    for name, table in METADATA.tables.items():
        made = {c["name"]: (str(c["type"]), c["nullable"]) for c in inspector.get_columns(name)}
        named = {c.name: (str(c.type), bool(c.nullable)) for c in table.columns}
        assert made == named, name
        indexes = {i["name"]: i["column_names"] for i in inspector.get_indexes(name) if i["name"]}
        assert {i.name: [c.name for c in i.columns] for i in table.indexes} == {
            key: value for key, value in indexes.items() if not key.startswith("sqlite_")
        }, name


def test_a_newer_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "web.sqlite"
    migrate(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 999")
    with pytest.raises(UserError, match="newer version"):
        Database(path)
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (999,)


def test_a_migration_that_fails_leaves_the_version_before(tmp_path, monkeypatch):
    path = tmp_path / "web.sqlite"
    shutil.copy(OLD, path)
    bad = tmp_path / "0002_bad.sql"
    bad.write_text("CREATE TABLE half (x);\nCREATE TABLE half (x);\n")
    monkeypatch.setattr("web.database.migrations", lambda: [(1, migrations()[0][1]), (2, bad)])
    with pytest.raises(sqlite3.OperationalError):
        migrate(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchall() == []


def test_it_is_in_wal_mode_with_a_patient_writer(tmp_path):
    database = Database(tmp_path / "web.sqlite")
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() >= 5000


def test_readers_do_not_wait_for_a_writer_and_see_nothing_half_done(tmp_path):
    database = Database(tmp_path / "web.sqlite")
    Lanes(database, DEVICES)
    with database.write() as tx:
        tx.connection.exec_driver_sql("UPDATE lanes SET started = 1")
        with database.read() as connection:
            assert connection.exec_driver_sql("SELECT sum(started) FROM lanes").scalar() == 0


def test_listeners_hear_of_what_was_committed_and_of_nothing_else(tmp_path):
    database = Database(tmp_path / "web.sqlite")
    heard: list[list[str]] = []
    database.listen(heard.append)
    with database.write() as tx:
        tx.touch("a", "b", "a")
    with pytest.raises(RuntimeError), database.write() as tx:
        tx.touch("c")
        raise RuntimeError
    assert heard == [["a", "b"]]


def filled(tmp_path: Path, count: int) -> tuple[Database, Lanes, JobStore]:
    """A database with many jobs in the queue."""
    database = Database(tmp_path / "web.sqlite")
    lanes = Lanes(database, DEVICES)
    rows = [
        {"id": f"{n:012x}", "name": f"job {n}", "kind": "train", "status": "queued",
        "devices": DEVICES[n % 2],
         "launcher": "{}", "position": 1024 * (n + 1), "attempt": 0, "rev": 1, "created_at": float(n),
         "updated_at": float(n), "reason": "", "phase": "", "info": "", "step": 0, "stalled": 0, "requeue": 0,
         "run_folders": "[]"}
        for n in range(count)
    ]  # fmt: skip
    with database.write() as tx:
        tx.execute(insert(jobs), rows)
    for device in DEVICES:
        lanes.start(device)
    return database, lanes, JobStore(database, lanes)


def test_many_workers_claim_every_job_once(tmp_path):
    database, _, _ = filled(tmp_path, 60)
    program = (
        "import sys; from pathlib import Path\n"
        "from web.database import Database; from web.queue.lanes import Lanes\n"
        "from web.queue.transitions import transition\n"
        "database = Database(Path(sys.argv[1])); lanes = Lanes(database, ('gpu:0', 'gpu:1', 'cpu:0'))\n"
        "idle = 0\n"
        "while idle < 300:\n"
        "    job = lanes.claim()\n"
        "    if job is None:\n"
        "        idle += 1\n"
        "        continue\n"
        "    idle = 0\n"
        "    print(job.id, flush=True)\n"
        "    with database.write() as tx:\n"
        "        transition(tx, job.id, 'failed', expected=('starting',), who='test', reason='done')\n"
    )
    command = [sys.executable, "-c", program, str(database.path)]
    workers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    claimed = [line for worker in workers for line in worker.communicate(timeout=90)[0].split()]
    assert sorted(claimed) == [f"{n:012x}" for n in range(60)]
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT max(attempt), min(attempt) FROM jobs").one() == (1, 1)
        assert connection.exec_driver_sql("SELECT count(*) FROM leases").scalar() == 0


def test_threads_share_the_one_writer(tmp_path):
    _, lanes, _ = filled(tmp_path, 2)
    found = []
    threads = [threading.Thread(target=lambda: found.append(lanes.claim())) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job.id for job in found if job) == [f"{n:012x}" for n in range(2)]


def test_ten_thousand_jobs_are_claimed_and_listed_fast(tmp_path):
    database, lanes, _ = filled(tmp_path, 10_000)
    small, _, _ = filled(tmp_path / "small", 100)

    def seconds(action) -> float:
        spent = []
        for _ in range(7):
            for each in (database, small):
                each.memo.forget()  # what is remembered would be fast with any number
            start = time.perf_counter()
            action()
            spent.append(time.perf_counter() - start)
        return statistics.median(spent)

    def claim_one() -> None:
        job = lanes.claim()
        with database.write() as tx:
            transition(tx, job.id, "failed", expected=("starting",), who="test", reason="done")

    few = seconds(lambda: list_jobs(small, JobQuery()))
    # As fast as with a hundred, up to noise; a scan of all rows takes fifty times as long.
    assert seconds(lambda: list_jobs(database, JobQuery())) < 5 * few + 0.005
    assert (
        seconds(lambda: list_jobs(database, JobQuery(status=("queued",), sort="position"))) < 5 * few + 0.01
    )
    assert seconds(claim_one) < 0.1
    page, cursor = list_jobs(database, JobQuery(sort="oldest", limit=500))
    seen = [job.id for job in page]
    while cursor:
        page, cursor = list_jobs(database, JobQuery(sort="oldest", limit=500, cursor=cursor))
        seen += [job.id for job in page]
    assert seen == [f"{n:012x}" for n in range(10_000)]


def test_moving_a_job_needs_no_renumbering_until_it_does(tmp_path):
    _, lanes, _ = filled(tmp_path, 4)
    ids = [job.id for job in lanes.order()]
    for _ in range(40):  # the gap of 1024 is used up after ten
        lanes.move([(ids[3], ids[0])])
        lanes.move([(ids[2], ids[0])])
        assert [job.id for job in lanes.order()] == [ids[0], ids[2], ids[3], ids[1]]
    lanes.move([(ids[1], None)])
    assert lanes.order()[0].id == ids[1]


def test_states_change_only_as_allowed(tmp_path):
    database, _, store = filled(tmp_path, 1)
    job_id = f"{0:012x}"
    with database.write() as tx:
        with pytest.raises(ValueError, match="cannot become"):
            transition(tx, job_id, "completed", expected=("queued",), who="test", reason="")
        assert not transition(tx, job_id, "draft", expected=("running",), who="test", reason="")
        assert not transition(tx, job_id, "draft", expected=("queued",), of_attempt=5, who="test", reason="")
        assert transition(
            tx, job_id, "draft", expected=("queued",), of_attempt=0, who="test", reason="why not"
        )
    assert store.get(job_id).reason == "why not"
    assert [event["reason"] for event in store.events(job_id)] == ["why not"]
    assert set(FOLLOWERS) == set(STATES) and all(FOLLOWERS.values())
