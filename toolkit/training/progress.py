"""The progress bar of a run on a terminal, or a line now and then in a file. Imports tqdm only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_SMOOTHING = 0.1  # share of the newest step in the shown speed


class Progress:
    """Context manager: `name: 12%|███ | 60/500 [0:12<1:32, 4.8it/s, lr: 1.0e-04 loss: 1.2e-01]`.

    Where the output is no terminal, a plain line at most every `line_every` seconds instead.
    """

    def __init__(
        self, name: str, total: int, *, start: int = 0, enabled: bool = True,
        stream: TextIO | None = None, line_every: float = 10.0,
    ) -> None:  # fmt: skip
        self.name, self.total, self.step = name, total, start
        self._stream = stream if stream is not None else sys.stderr
        self._enabled = enabled
        self._line_every = line_every
        self._bar: tqdm | None = None
        if enabled and self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=start, desc=name, file=self._stream, bar_format=_FORMAT,
                dynamic_ncols=True, smoothing=_SMOOTHING, mininterval=0.2,
            )  # fmt: skip
        now = time.monotonic()
        self._said_at = self._moved_at = now
        self._said_step: int | None = None
        self._seconds: float | None = None
        self._postfix = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, step: int, *, loss: float | None = None, lr: float | None = None) -> None:
        """Show that `step` steps are done; a loss or lr that is not given keeps its last value."""
        now = time.monotonic()
        moved = step - self.step
        if moved > 0:
            seconds = (now - self._moved_at) / moved
            old = self._seconds
            self._seconds = seconds if old is None else old + _SMOOTHING * (seconds - old)
        self.step, self._moved_at = step, now
        if loss is not None or lr is not None:
            values = [("lr", lr, ".1e"), ("loss", loss, ".3e")]
            self._postfix = " ".join(
                f"{key}: {value:{form}}" for key, value, form in values if value is not None
            )
        if self._bar is not None:
            self._bar.set_postfix_str(self._postfix, refresh=False)
            self._bar.update(moved)
        elif self._enabled and (now - self._said_at >= self._line_every or step == self.total):
            self._say()

    def note(self, text: str) -> None:
        """Write a line without tearing the bar."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._stream.write(text + "\n")

    @contextmanager
    def paused(self, text: str | None = None) -> Iterator[None]:
        """Take the bar away while sampling or saving shows its own; that time is no step time."""
        started = time.monotonic()
        if self._bar is not None:
            self._bar.clear()
        if text is not None:
            self.note(text)
        try:
            yield
        finally:
            away = time.monotonic() - started
            self._moved_at += away
            if self._bar is not None:
                self._bar.start_t += away
                self._bar.last_print_t += away
                self._bar.refresh()

    def close(self) -> None:
        """Leave the last state on the screen; a second call does nothing."""
        if self._bar is not None:
            self._bar.close()
        elif self._enabled and self.step != self._said_step:
            self._say()
        self._bar = None
        self._enabled = False

    def _say(self) -> None:
        self._said_at, self._said_step = time.monotonic(), self.step
        share = 100 * self.step // self.total if self.total else 100
        parts = [self._postfix] if self._postfix else []
        if self._seconds:
            parts.append(pace(self._seconds))
            parts.append(f"{duration((self.total - self.step) * self._seconds)} left")
        tail = f" [{', '.join(parts)}]" if parts else ""
        self._stream.write(f"{self.name}: {share}% {self.step}/{self.total}{tail}\n")
        self._stream.flush()


def nothing_left(step: int, wanted: int) -> str:
    """What to tell who starts a run again that has done all the steps wanted, or more."""
    if step == wanted:
        return f"all {wanted} steps are done already; raise train.steps to go on"
    return (
        f"{step} steps were trained already, train.steps asks for {wanted}: nothing is trained, the model is "
        f"that of step {step}; raise train.steps to go on, or take another name to begin anew"
    )


def pace(seconds: float) -> str:
    """`4.76 it/s` or, slower than one a second, `2.10 s/it`."""
    return f"{1 / seconds:.2f} it/s" if seconds < 1 else f"{seconds:.2f} s/it"


def duration(seconds: float) -> str:
    """`0:07`, `12:05`, `3:07:09`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
