"""How a run is told to stop, abort, save or sample: files in `commands/`, Ctrl-C and SIGTERM. Torch-free."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from toolkit.errors import JobStopped, RunError
from toolkit.runs import atomic
from toolkit.runs.process import start_of_this_process

COMMANDS = frozenset({"stop", "abort", "save", "sample"})
# Who starts an attempt some time before its process says in this variable when, in seconds since 1970.
STARTED = "AI_TOOLKIT_STARTED"
_CLOCK_S = 0.05  # a file's time may be that of the system's last tick
_SAME_KEYPRESS = 0.5  # seconds; a launcher passes on the Ctrl-C that the terminal has already sent us

_ANSWER = b"\nStopping after this step; press Ctrl-C again to stop at once, without saving.\n"

logger = logging.getLogger(__name__)


class CommandBox:
    """The folder of commands of one run. A command is a file of its name; obeying it removes the file."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._noted: set[str] = set()

    def put(self, name: str) -> None:
        """Give a command. Raises ValueError if it is unknown."""
        if name not in COMMANDS:
            raise ValueError(f"unknown command {name!r}; known: {', '.join(sorted(COMMANDS))}")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).touch()

    def poll(self) -> set[str]:
        """The commands waiting now; a file of another name is noted once and left alone."""
        try:
            with os.scandir(self.folder) as entries:
                names = {entry.name for entry in entries}
        except FileNotFoundError:
            return set()
        for name in sorted(names - COMMANDS - self._noted):
            self._noted.add(name)
            if not name.startswith("."):
                known = ", ".join(sorted(COMMANDS))
                logger.warning("%s is no command; known: %s", self.folder / name, known)
        return names & COMMANDS

    def take(self, name: str) -> bool:
        """Remove a command and say whether it was there. Raises RunError if it cannot be removed."""
        path = self.folder / name
        with atomic.reporting(path, "removed"):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    def clear(self, before: float | None = None) -> list[str]:
        """Remove the commands, or those given before a time (in seconds since 1970); returns the names."""
        return [name for name in sorted(self.poll()) if self._is_older(name, before) and self.take(name)]

    def _is_older(self, name: str, time: float | None) -> bool:
        try:
            return time is None or (self.folder / name).stat().st_mtime < time - _CLOCK_S
        except FileNotFoundError:
            return False


def start_of_attempt() -> float:
    """Since when commands are meant for this attempt, in seconds since 1970; older ones are left over."""
    began = start_of_this_process()
    try:
        return min(began, float(os.environ.get(STARTED) or began))
    except ValueError:
        return began


class StopRequest:
    """A wish to end after the current step, from a signal or from `commands/stop`.

    With `commands/abort` the next look, or the next interrupt at any moment, raises KeyboardInterrupt.
    """

    def __init__(self, box: CommandBox | None = None) -> None:
        self.box = box
        self.reason: str | None = None
        self._interrupted: float | None = None

    def __bool__(self) -> bool:
        return self.requested

    @property
    def requested(self) -> bool:
        """Whether to stop; looks into the command folder too, and takes the command out of it."""
        waiting = set() if self.box is None else self.box.poll()
        if "abort" in waiting:
            self._abort()
        if self.reason is None and self.box is not None and "stop" in waiting:
            self.box.take("stop")
            self.reason = "commands/stop"
        return self.reason is not None

    def request(self, reason: str) -> None:
        """Ask to stop; the first reason is kept."""
        self.reason = self.reason or reason

    def check(self) -> None:
        """Raise JobStopped if a stop was asked for; for places with nothing to save (loading, caching)."""
        if self.requested:
            raise JobStopped(self.reason)

    @contextmanager
    def install(self) -> Iterator[StopRequest]:
        """Answer SIGINT and SIGTERM with a request; a second Ctrl-C interrupts. Restores the handlers.

        Does nothing outside the main thread, where Python allows no handlers.
        """
        previous: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, self._on_signal)
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _abort(self) -> NoReturn:
        assert self.box is not None
        self._interrupted = time.monotonic()
        with suppress(RunError):
            self.box.take("abort")
        raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.box is not None and (self.box.folder / "abort").exists():
            self._abort()
        name = signal.Signals(number).name
        self.request(name)
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            with suppress(OSError):  # not sys.stderr: the signal may have come amid a write to it
                os.write(2, _ANSWER)
        elif now - self._interrupted > _SAME_KEYPRESS:
            raise KeyboardInterrupt
