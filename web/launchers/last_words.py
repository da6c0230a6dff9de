"""What a program said at its end, apart from what the launcher before it adds. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from web.launchers.attempt import Exit

_TRACEBACK = "Traceback (most recent call last):"
_ERROR = "error: "  # how run.py begins the lines that say what is wrong
_RESULT = "Result:"  # and its summary, which only counts
_LAUNCHERS = ("/accelerate/commands/", "/torch/distributed/")  # in the frames of their tracebacks
_CODE = re.compile(r"CalledProcessError: Command .* returned non-zero exit status (\d+)\.")
_SIGNAL = re.compile(
    r"CalledProcessError: Command .* died with (?:<Signals\.\w+: (\d+)>|unknown signal (\d+))\."
)


@dataclass(frozen=True, slots=True)
class LastWords:
    """line: the one that says most of how it ended. exit: what a launcher says of its program's end."""

    line: str = ""
    exit: Exit | None = None


def last_words(output: str, limit: int = 300) -> LastWords:
    """What the end of an output says."""
    lines = [line.rstrip() for line in output.replace("\r", "\n").splitlines() if line.strip()]
    said, of_launcher = _split(lines)
    return LastWords(_telling(said)[:limit], _passed_on(of_launcher))


def _split(lines: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What the program said, and the traceback of its launcher, if there is one."""
    start = _last(lines, _TRACEBACK)
    if start is None:
        return lines, ()
    trace = lines[start:]
    if any(name in line.replace("\\", "/") for line in trace for name in _LAUNCHERS):
        return lines[:start], trace
    return lines, ()


def _telling(lines: Sequence[str]) -> str:
    """The first of the errors that were told last, unless a traceback came after; else the last line."""
    end = _last(lines, _RESULT)
    lines = lines[:end]
    start = _last(lines, _TRACEBACK)
    found = [index for index, line in enumerate(lines) if line.startswith(_ERROR) and index > (start or -1)]
    while len(found) > 1 and found[-2] == found[-1] - 1:
        found.pop()
    if found:
        return lines[found[-1]].removeprefix(_ERROR)
    return lines[-1].strip() if lines else ""


def _passed_on(trace: Sequence[str]) -> Exit | None:
    last = trace[-1] if trace else ""
    if found := _CODE.search(last):
        return Exit(code=int(found[1]))
    if found := _SIGNAL.search(last):
        return Exit(signal=int(found[1] or found[2]))
    return None


def _last(lines: Sequence[str], wanted: str) -> int | None:
    """Where a line stands the last time."""
    return next((index for index in reversed(range(len(lines))) if lines[index] == wanted), None)
