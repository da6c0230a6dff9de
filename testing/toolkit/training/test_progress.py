"""The bar on a terminal and the lines without one."""

from __future__ import annotations

import io

import pytest

from toolkit.training import progress
from toolkit.training.progress import Progress, duration, pace


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that `progress` sees."""
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def test_a_file_gets_a_line_now_and_then(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("cat", 100, stream=stream) as bar:
        for step in range(1, 101):
            clock.now += 0.5
            bar.update(step, loss=0.1234, lr=1e-4)
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert [line.split(" [")[0] for line in lines] == [
        f"cat: {step}% {step}/100" for step in (20, 40, 60, 80, 100)
    ]
    assert lines[0] == "cat: 20% 20/100 [lr: 1.0e-04 loss: 1.234e-01, 2.00 it/s, 0:40 left]"


def test_a_run_that_ends_early_says_where(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("cat", 1000, start=500, stream=stream) as bar:
        clock.now += 2.5
        bar.update(501)
    assert stream.getvalue() == "cat: 50% 501/1000 [2.50 s/it, 20:48 left]\n"


def test_sampling_time_is_no_step_time(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("cat", 100, stream=stream) as bar:
        for step in range(1, 11):
            clock.now += 0.5
            bar.update(step)
            with bar.paused():
                clock.now += 60
    assert "2.00 it/s" in stream.getvalue().splitlines()[-1]


def test_a_terminal_gets_a_bar_that_survives_a_pause() -> None:
    stream = Terminal()
    bar = Progress("cat", 4, stream=stream)
    for step in range(1, 4):
        bar.update(step, loss=0.5, lr=2e-4)
    with bar.paused("sampling"):
        stream.write("[own bar]\n")
    bar.note("saved cat_000000003.safetensors")
    bar.update(4)
    bar.close()
    bar.close()
    text = stream.getvalue()
    assert "sampling\n" in text and "saved cat_000000003.safetensors\n" in text
    last = text.rstrip("\n").split("\r")[-1]
    assert last.startswith("cat: 100%|")
    assert "4/4" in last and "lr: 2.0e-04 loss: 5.000e-01" in last


def test_other_ranks_are_silent() -> None:
    stream = io.StringIO()
    with Progress("cat", 1, enabled=False, stream=stream) as bar, bar.paused("x"):
        bar.update(1)
        bar.note("x")
    assert stream.getvalue() == ""


def test_numbers_for_people() -> None:
    assert [pace(0.21), pace(2.1)] == ["4.76 it/s", "2.10 s/it"]
    assert [duration(seconds) for seconds in (0, 7.4, 725, 11229)] == ["0:00", "0:07", "12:05", "3:07:09"]
