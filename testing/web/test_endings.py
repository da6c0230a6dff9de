"""What is made of what an attempt leaves behind."""

from __future__ import annotations

import pytest

from toolkit.runs.status import Status
from web.launchers.attempt import Exit
from web.queue.endings import ending_of


def told(code: int, *lines: str) -> Status:
    """A status whose run has told how it ended."""
    return Status(step=7, exit={"code": code, "error": list(lines)})


@pytest.mark.parametrize(("exit", "status", "mode", "state", "reason"), [
    (Exit(code=0), None, None, "completed", "finished"),
    (Exit(code=0), told(0), "save", "completed", "finished"),
    (Exit(code=3), told(3), "save", "stopped", "checkpoint"),
    (Exit(code=3), told(3), None, "stopped", "checkpoint"),
    (Exit(code=130), None, "save", "stopped", "before there was anything"),
    (Exit(code=1), None, "save", "stopped", "before it had begun"),
    (Exit(code=1), told(1, "out of memory"), "save", "failed", "out of memory"),
    (Exit(code=1), told(1), "now", "stopped", "while it was stopped"),
    (Exit(code=1), told(1, "CUDA error", "more"), None, "failed", "CUDA error"),
    (Exit(code=2), None, None, "failed", "said last"),
    (Exit(code=1), told(3, "commands/stop"), "save", "stopped", "checkpoint"),
    (Exit(code=1), told(3, "commands/stop"), None, "stopped", "checkpoint"),
    (Exit(code=1), told(2, "no such file"), None, "failed", "no such file"),
    (Exit(code=1), told(0), None, "failed", "said last"),
    (Exit(code=130), told(130, "interrupted"), "now", "stopped", "without saving"),
    (Exit(code=130), told(130, "interrupted"), None, "stopped", "interrupted, without saving"),
    (Exit(error="cannot start x"), None, None, "failed", "cannot start x"),
    (Exit(signal=9), Status(step=7), None, "failed", "memory"),
    (Exit(signal=11), Status(step=7), None, "failed", "SIGSEGV"),
    (Exit(signal=9), Status(step=7), "kill", "stopped", "on request"),
    (Exit(signal=15), Status(step=7), "now", "stopped", "SIGTERM"),
    (None, told(0), None, "completed", "finished"),
    (None, told(3), "save", "stopped", "checkpoint"),
    (None, told(1, "why"), None, "failed", "why"),
    (None, Status(step=7), None, "lost", "at step 7"),
    (None, None, "save", "lost", "vanished"),
    (None, Status(step=7), "kill", "stopped", "killed on request at step 7"),
])  # fmt: skip
def test_the_end_is_told_truly(exit, status, mode, state, reason):
    ending = ending_of(exit, status, mode, said="said last", saved=True)
    assert ending.state == state and reason in ending.reason


def test_after_a_reboot_it_says_so():
    assert "restarted" in ending_of(None, Status(step=7), None, rebooted=True).reason


def test_what_a_launcher_says_of_its_programs_end_counts_where_the_run_says_nothing():
    ending = ending_of(Exit(code=1), None, None, said="no such file", passed_on=Exit(code=2))
    assert (ending.state, ending.code, ending.reason) == ("failed", 2, "no such file")
    ending = ending_of(Exit(code=1), Status(step=7), None, said="step 7", passed_on=Exit(signal=9))
    assert (ending.state, ending.code, ending.signal) == ("failed", None, 9) and "memory" in ending.reason
    ending = ending_of(Exit(code=1), told(3, "SIGINT"), None, passed_on=Exit(code=130))
    assert (ending.state, ending.code) == ("stopped", 130)


@pytest.mark.parametrize(("line", "reason"), [
    ("commands/stop", "stopped on request"),
    ("SIGTERM", "stopped on request"),
    ("stopped after 2 of 5 pictures", "stopped after 2 of 5 pictures"),
])  # fmt: skip
def test_a_stop_that_left_no_checkpoint_does_not_speak_of_one(line, reason):
    ending = ending_of(Exit(code=3), told(3, line), "save")
    assert (ending.state, ending.reason) == ("stopped", reason)
    assert ending_of(Exit(code=3), None, "save").reason == "stopped on request"
