"""The lock of a run folder against live, dead and foreign processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import RunError
from toolkit.runs.lock import RunLock, read_holder
from toolkit.runs.process import this_process

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from pathlib import Path
from toolkit.errors import RunError
from toolkit.runs.lock import RunLock
path, start = Path(sys.argv[1]), Path(sys.argv[2])
while not start.exists():
    time.sleep(0.001)
try:
    with RunLock(path) as lock:
        print("won", len(lock.notes), flush=True)
        sys.stdin.readline()
except RunError as error:
    print("refused", error, flush=True)
"""


def start_holder(path: Path, start: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(start)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def killed_holder(path: Path) -> subprocess.Popen[str]:
    """A process that was killed while it held the lock; not waited for, so it is a zombie."""
    go = path.with_name("go")
    go.touch()
    process = start_holder(path, go)
    assert first_line(process) == "won 0"
    process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while this_state(process.pid) != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def this_state(pid: int) -> str:
    stat = Path(f"/proc/{pid}/stat")
    return stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else "Z"


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", timeout=20)


def forge(path: Path, **changes: Any) -> None:
    """Write a lock as this process would, with some of its fields changed."""
    with RunLock(path):
        content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def test_a_lock_is_held_once_and_released(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with RunLock(path) as lock:
        holder = read_holder(path)
        assert holder is not None and holder.process == this_process()
        assert lock.notes == []
        with pytest.raises(RunError, match="in use by process") as caught:
            RunLock(path).acquire()
        assert caught.value.problems[0].file == str(path)
        assert path.exists()
    assert list(tmp_path.iterdir()) == []
    lock.release()


def test_a_lock_is_released_when_the_job_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunLock(tmp_path / "run.lock"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    process = killed_holder(path)
    try:
        with RunLock(path) as lock:
            assert len(lock.notes) == 1
            assert f"process {process.pid} " in lock.notes[0]
    finally:
        process.communicate()
    assert [entry.name for entry in tmp_path.iterdir()] == ["go"]


def test_a_live_process_elsewhere_refuses_us(tmp_path: Path) -> None:
    path, go = tmp_path / "run.lock", tmp_path / "go"
    go.touch()
    process = start_holder(path, go)
    try:
        assert first_line(process) == "won 0"
        with pytest.raises(RunError, match=f"in use by process {process.pid} "):
            RunLock(path).acquire()
    finally:
        end(process)
    with RunLock(path) as lock:
        assert lock.notes == []


@pytest.mark.parametrize("stale", [False, True])
def test_of_racing_processes_exactly_one_wins(tmp_path: Path, stale: bool) -> None:
    path = tmp_path / "run.lock"
    if stale:
        forge(path, started="long ago", token="feed")
    go = tmp_path / "now"
    racers = [start_holder(path, go) for _ in range(4)]
    time.sleep(0.5)
    go.touch()
    answers = [first_line(racer) for racer in racers]
    for racer in racers:
        end(racer)
    won = [answer for answer in answers if answer.startswith("won")]
    assert won == [f"won {int(stale)}"], answers
    assert all(answer.startswith("refused") for answer in answers if answer not in won)
    assert [entry.name for entry in tmp_path.iterdir()] == ["now"]


def test_many_takeovers_at_once_in_threads_never_give_two_owners(tmp_path: Path) -> None:
    """Threads hit the narrow places more often than processes do: every round one owner, and no litter."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    path = tmp_path / "run.lock"
    for turn in range(40):
        forge(path, started="long ago", token=f"t{turn}")
        barrier = Barrier(4)

        def attempt(barrier: Barrier = barrier) -> RunLock | None:
            lock = RunLock(path)
            barrier.wait()
            try:
                lock.acquire()
            except RunError:
                return None
            return lock

        with ThreadPoolExecutor(4) as pool:
            owners = [
                lock for lock in (task.result() for task in [pool.submit(attempt) for _ in range(4)]) if lock
            ]
        assert len(owners) == 1
        owners[0].release()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [{"boot_id": "before the reboot"}, {"started": "1"}, {"pid": 2**22 + 7}],
    ids=["rebooted", "reused pid", "dead pid"],
)
def test_stale_locks_are_recognised(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "run.lock"
    forge(path, **changes)
    with RunLock(path) as lock:
        assert len(lock.notes) == 1


def test_another_host_is_never_overruled(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    forge(path, host="node17", pid=2**22 + 7)
    with pytest.raises(RunError, match="node17") as caught:
        RunLock(path).acquire()
    problem = caught.value.problems[0]
    assert problem.file == str(path)
    assert "delete this file" in str(problem.remedy)
    assert path.exists()


def test_a_restarted_container_takes_over_and_a_live_neighbour_does_not_lose(tmp_path: Path) -> None:
    """Same host name and boot, other process namespace: only the kernel's lock can tell."""
    path = tmp_path / "run.lock"
    forge(path, namespace="pid:[1]")
    with RunLock(path) as lock:
        assert len(lock.notes) == 1
    with RunLock(path):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"namespace": "pid:[1]"}))
        with pytest.raises(RunError, match="cannot be seen"):
            RunLock(path).acquire()


def test_an_empty_lock_is_waited_for_and_then_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.runs.lock._EMPTY_SECONDS", 0.1)
    path = tmp_path / "run.lock"
    path.touch()
    with pytest.raises(RunError, match="empty or damaged"):
        RunLock(path).acquire()
    assert read_holder(path) is None


def test_a_forked_child_does_not_release(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    code = f"""
import os
from pathlib import Path
from toolkit.runs.lock import RunLock
with RunLock(Path({str(path)!r})) as lock:
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    print(Path({str(path)!r}).exists())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    assert not path.exists()


def test_release_leaves_a_lock_that_is_no_longer_ours(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    lock = RunLock(path)
    lock.acquire()
    path.unlink()  # by hand, as the remedy says
    forge(path, token="other")
    lock.release()
    assert path.exists()


def test_a_process_is_known_by_more_than_its_number() -> None:
    me = this_process()
    assert me.is_running() is True
    assert me.pid == os.getpid()
    assert type(me)(me.host, me.boot_id, me.namespace, me.pid, "0").is_running() is False
    assert type(me)("elsewhere", me.boot_id, me.namespace, me.pid, me.started).is_running() is None


@pytest.mark.parametrize("in_the_way", ["parent is a file", "lock is a folder"])
def test_a_lock_that_cannot_be_made_is_told(tmp_path: Path, in_the_way: str) -> None:
    path = tmp_path / "run" / "run.lock"
    if in_the_way == "parent is a file":
        path.parent.touch()
    else:
        path.mkdir(parents=True)
    with pytest.raises(RunError, match=r"run\.lock: cannot be written: (Not|Is) a directory"):
        RunLock(path).acquire()


DIE = """
import os, signal, sys
from pathlib import Path
from toolkit.runs.lock import RunLock
name, after = sys.argv[2], sys.argv[3] == "after"
call = getattr(os, name)
def die(*args, **kwargs):
    if not after:
        os.kill(os.getpid(), signal.SIGKILL)
    call(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, name, die)
RunLock(Path(sys.argv[1])).acquire()
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "link"])
@pytest.mark.parametrize("stale", [False, True])
def test_a_process_killed_while_it_takes_the_lock_keeps_nobody_out(
    tmp_path: Path, call: str, moment: str, stale: bool
) -> None:
    path = tmp_path / "run.lock"
    if stale:
        forge(path, pid=2**22 + 1, started="0")
    command = [sys.executable, "-c", DIE, str(path), call, moment]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    with RunLock(path):
        assert read_holder(path).process == this_process()
    assert not path.exists()


def test_a_file_system_without_links_locks_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "run.lock"
    with RunLock(path), pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        RunLock(path).acquire()
    assert list(tmp_path.iterdir()) == []
