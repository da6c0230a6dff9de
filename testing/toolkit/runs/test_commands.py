"""Commands to a run: files and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from toolkit.errors import JobStopped, RunError
from toolkit.runs.commands import CommandBox, StopRequest


def test_a_command_is_seen_until_it_is_taken(tmp_path: Path) -> None:
    box = CommandBox(tmp_path / "commands")
    assert box.poll() == set()
    box.put("stop")
    box.put("save")
    box.put("save")
    assert box.poll() == box.poll() == {"stop", "save"}
    assert box.take("save")
    assert not box.take("save")
    assert box.poll() == {"stop"}
    assert box.clear() == ["stop"]
    assert box.poll() == set()
    with pytest.raises(ValueError, match="halt"):
        box.put("halt")


def test_other_files_are_noted_once_and_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box = CommandBox(tmp_path)
    for name in ("stpo", ".nfs0001", "sample"):
        (tmp_path / name).touch()
    assert box.poll() == box.poll() == {"sample"}
    assert len(caplog.messages) == 1
    assert "stpo is no command; known: abort, sample, save, stop" in caplog.text
    assert (tmp_path / "stpo").exists()


def test_polling_is_cheap(tmp_path: Path) -> None:
    box = CommandBox(tmp_path)
    started = time.perf_counter()
    for _ in range(1000):
        box.poll()
    assert (time.perf_counter() - started) / 1000 < 1e-2


def test_a_stop_file_stops_and_is_used_up(tmp_path: Path) -> None:
    box = CommandBox(tmp_path)
    stop = StopRequest(box)
    stop.check()
    assert not stop.requested
    box.put("stop")
    assert stop.requested and stop
    assert box.poll() == set()
    assert stop.requested
    with pytest.raises(JobStopped, match="commands/stop"):
        stop.check()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop.install():
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.reason == number.name
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_but_an_echo_of_the_first_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("toolkit.runs.commands.time.monotonic", lambda: now)
    with StopRequest().install():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # passed on by a launcher
        os.kill(os.getpid(), signal.SIGTERM)
        now = 101.0
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_abort_ends_at_once_by_the_first_interrupt_or_when_it_is_seen(tmp_path: Path) -> None:
    box = CommandBox(tmp_path)
    with StopRequest(box).install() as stop:
        box.put("abort")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert box.poll() == set() and not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        box.put("abort")
        with pytest.raises(KeyboardInterrupt):
            stop.check()
    assert box.poll() == set()


def test_handlers_are_restored_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), StopRequest().install():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_only_files_work(tmp_path: Path) -> None:
    seen: list[bool] = []
    box = CommandBox(tmp_path)

    def work() -> None:
        with StopRequest(box).install() as stop:
            seen.append(stop.requested)
            box.put("stop")
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, True]


def test_a_real_process_ends_after_its_step() -> None:
    code = """
import time
from toolkit.runs.commands import StopRequest
with StopRequest().install() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
print("saved", stop.reason, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[3], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert out == "saved SIGINT\n"
    assert "press Ctrl-C again" in err
    assert process.returncode == 0


def test_a_command_that_cannot_be_removed_is_told(tmp_path: Path) -> None:
    (tmp_path / "stop").mkdir()
    with pytest.raises(RunError, match="stop: cannot be removed"):
        CommandBox(tmp_path).clear()
