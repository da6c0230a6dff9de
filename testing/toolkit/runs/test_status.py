"""status.json and the verdict of a watcher."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.errors import EXIT_STOPPED, JobStopped, RunError
from toolkit.runs import atomic
from toolkit.runs.standing import describe, look
from toolkit.runs.status import Status, StatusWriter, judge, read_status


def writer(path: Path, **options: float) -> StatusWriter:
    return StatusWriter(path, job="train", name="foo", attempt=2, total_steps=100, **options)  # type: ignore[arg-type]


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.005)
    return False


def read(path: Path) -> Status:
    status = read_status(path)
    assert status is not None
    return status


def test_a_run_tells_its_story(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert read_status(path) is None
    with writer(path, interval=0.01, beat=0.02) as status:
        first = read(path)
        assert (first.phase, first.step, first.attempt, first.total_steps) == ("starting", 0, 2, 100)
        assert first.process.is_running()
        status.phase("loading", "Loading model")
        assert (read(path).phase, read(path).info) == ("loading", "Loading model")
        assert wait_for(lambda: read(path).alive >= 3)
        status.phase("training")
        for step in range(1, 26):
            status.tick(step, seconds=0.5, loss=1 / step, lr=1e-4)
        assert wait_for(lambda: read(path).step == 25)
        now = read(path)
        assert (now.progress, now.speed, now.eta_s, now.lr) == (25, 2.0, 37.5, 1e-4)
        assert now.loss == pytest.approx(0.04)
        status.tick(info="Caching 3/7")
        assert wait_for(lambda: read(path).progress == 26 and read(path).info == "Caching 3/7")
        status.finish("finished", code=0)
    last = read(path)
    assert (last.phase, last.exit, last.eta_s) == ("finished", {"code": 0, "error": []}, None)
    assert last.updated_at >= last.started_at > 1e9
    assert json.loads(path.read_text())["schema_version"] == 1


def test_steps_do_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand ticks, a handful of writes, at least `interval` apart."""
    times: list[float] = []
    real = atomic.write_json

    def slow(*arguments: object, **options: object) -> None:
        times.append(time.monotonic())
        time.sleep(0.05)
        real(*arguments, **options)  # type: ignore[arg-type]

    with writer(tmp_path / "status.json", interval=0.2) as status:
        monkeypatch.setattr(atomic, "write_json", slow)
        started = time.monotonic()
        for step in range(10_000):
            status.tick(step, loss=0.5)
        assert time.monotonic() - started < 1.0
        time.sleep(0.5)
        written = list(times)
    assert len(written) <= 1 + (written[-1] - started) / 0.2
    assert min((b - a for a, b in zip(written, written[1:], strict=False)), default=1) >= 0.2


def test_speed_is_measured_and_leaves_out_other_phases(tmp_path: Path) -> None:
    status = writer(tmp_path / "status.json")
    status.phase("training")
    status.tick(1)
    time.sleep(0.02)
    status.tick(2)
    status.phase("sampling")
    time.sleep(0.3)
    status.phase("training")
    status.tick(3)
    speed = status.status.speed
    assert speed is not None and 4 < speed <= 50


@pytest.mark.parametrize(
    ("error", "phase", "code", "line"),
    [
        (RunError("the loss is NaN\nat step 3"), "failed", 1, "the loss is NaN"),
        (ZeroDivisionError("division by zero"), "failed", 1, "ZeroDivisionError: division by zero"),
        (JobStopped("commands/stop"), "stopped", EXIT_STOPPED, "commands/stop"),
        (KeyboardInterrupt(), "stopped", 130, "interrupted"),
        (None, "finished", 0, None),
    ],
)
def test_the_end_is_recorded(
    tmp_path: Path, error: BaseException | None, phase: str, code: int, line: str | None
) -> None:
    path = tmp_path / "status.json"

    def run() -> None:
        with writer(path):
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    last = read(path)
    assert last.exit is not None
    assert (last.phase, last.exit["code"]) == (phase, code)
    assert (last.exit["error"][0] if last.exit["error"] else None) == line
    assert not any(thread.name == "status" for thread in threading.enumerate())


def test_a_status_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "status.json"
    path.mkdir()  # a folder in its place: neither permissions nor a small disk stop root
    with writer(path, interval=0.01, beat=0.02) as status:
        time.sleep(0.1)
        path.rmdir()
        status.tick(7)
        assert wait_for(lambda: read_status(path) is not None and read(path).step == 7)
    messages = [record.message for record in caplog.records]
    assert sum(f"{path}: cannot be written: Is a directory" in message for message in messages) == 1


def fill(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no file beside another gets a byte, as on a full disk."""
    real = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        if path.name.endswith(".part"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


def test_a_full_disk_keeps_neither_the_counters_nor_the_end_from_being_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.json"
    full = RunError(f"{tmp_path}/checkpoints/step_000000018: cannot be written: No space left on device")
    with pytest.raises(RunError), writer(path, interval=0.01, beat=0.02) as status:
        status.phase(
            "training", "Training, with a line that is longer than the one at the end is " + 300 * "x"
        )
        fill(monkeypatch)
        alive = read(path).alive
        status.tick(18)
        assert wait_for(lambda: (now := read(path)).step == 18 and now.alive > alive)
        raise full
    standing = look(tmp_path)
    assert standing.state == "failed" and standing.status is not None
    assert standing.status.exit == {"code": 1, "error": [str(full)]}
    assert "memory" not in "\n".join(describe(standing))
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_too_long_for_the_room_of_a_full_disk_is_told_by_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError), writer(tmp_path / "status.json"):
        fill(monkeypatch)
        raise RunError("no space" + 100_000 * " left\n")
    status = read(tmp_path / "status.json")
    assert status.phase == "failed" and status.exit is not None
    assert (status.exit["code"], status.info, status.exit["error"][0]) == (
        1,
        "no space left",
        "no space left",
    )


def test_a_first_status_on_a_full_disk_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(monkeypatch)
    with writer(tmp_path / "status.json"):
        pass
    (message,) = [record.message for record in caplog.records]
    assert "status.json: cannot be written: No space left on device" in message
    assert list(tmp_path.iterdir()) == []


def test_many_threads_lose_no_tick(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    with writer(path, interval=0.001, beat=0.001) as status:
        threads = [threading.Thread(target=lambda: [status.tick() for _ in range(500)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert read(path).progress == 2000


def test_damage_and_the_future_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    for damage in ("", '{"step": 3', "[1]"):
        path.write_text(damage)
        assert read_status(path) is None
    path.write_text('{"schema_version": 1, "step": 3, "a_field_of_tomorrow": 1}')
    assert read(path).step == 3
    path.write_text('{"schema_version": 99}')
    with pytest.raises(RunError, match="newer"):
        read_status(path)


def test_status_of_version_1_is_read(tmp_path: Path) -> None:
    """What a run of schema version 1 left behind stays readable."""
    fixture = Path(__file__).parent / "fixtures" / "status_v1.json"
    status = read(fixture)
    assert (status.name, status.phase, status.step, status.exit) == (
        "cat",
        "finished",
        500,
        {"code": 0, "error": []},
    )


def test_the_verdict_uses_the_readers_clock_only() -> None:
    base = Status(host="h", pid=1, phase="training", alive=5, progress=10, updated_at=-1e12)
    watch = judge(None, base, 1000.0)
    assert watch.verdict == "alive"  # whatever the writer's clock says
    watch = judge(watch, base, 1019.0)
    assert watch.verdict == "alive"
    assert judge(watch, base, 1021.0).verdict == "dead"
    beating = watch
    for second in range(1020, 1064, 2):
        beating = judge(beating, replace(base, alive=second), float(second))
    assert beating.verdict == "stalled"
    assert judge(beating, replace(base, alive=1, progress=11), 1070.0).verdict == "alive"
    assert judge(beating, replace(base, attempt=2), 1070.0).verdict == "alive"  # a new attempt starts afresh
    assert judge(beating, replace(base, phase="failed"), 9999.0).verdict == "ended"


@pytest.mark.parametrize(
    ("status", "patience"),
    [
        (Status(phase="training", speed=10.0), 60),
        (Status(phase="training", speed=0.05), 400),
        (Status(phase="loading"), 600),
    ],
)
def test_slow_work_gets_more_patience(status: Status, patience: int) -> None:
    watch = judge(None, status, 0.0)
    before = judge(watch, replace(status, alive=1), patience - 1.0)
    after = judge(watch, replace(status, alive=2), patience + 1.0)
    assert (before.verdict, after.verdict) == ("alive", "stalled")


def test_a_killed_run_is_seen_to_be_dead(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    code = f"""
import time
from pathlib import Path
from toolkit.runs.status import StatusWriter
with StatusWriter(Path({str(path)!r}), job="train", name="foo", beat=0.05, interval=0.01):
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[3])
    try:
        assert wait_for(lambda: path.exists() and read(path).alive >= 2, 20)
        assert read(path).process.is_running() is True
    finally:
        process.kill()
        process.wait()
    left = read(path)
    assert left.phase == "starting"
    assert left.process.is_running() is False
    watch = judge(None, left, 0.0)
    assert judge(watch, read(path), 25.0).verdict == "dead"
