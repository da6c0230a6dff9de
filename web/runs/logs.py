"""Pieces of what a job printed. Torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from web.runs.plain_files import open_plain

MAX_BYTES = 1024 * 1024  # in one answer
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class LogSlice:
    """text: whole lines. offset: where the next piece begins. reset: it is another file than before."""

    text: str
    offset: int
    reset: bool
    at_end: bool


def read_slice(path: Path, offset: int | None, max_bytes: int = MAX_BYTES) -> LogSlice:
    """The lines from byte `offset` on; None: the last ones. Of a progress bar the last state is kept."""
    try:
        with open_plain(path) as file:
            size = file.seek(0, 2)
            reset = offset is not None and offset > size
            start = max(0, size - max_bytes) if offset is None or reset else offset
            file.seek(start)
            data = file.read(max_bytes)
    except FileNotFoundError:
        return LogSlice("", 0, bool(offset), True)
    skipped = 0
    if start > 0 and (offset is None or reset):
        skipped = data.find(b"\n") + 1  # it began amid a line
    end = data.rfind(b"\n") + 1
    if end <= skipped:
        # One line longer than a piece is given as it is; one that is still being written waits.
        end = len(data) if len(data) == max_bytes else skipped
    text = plain_text(data[skipped:end].decode("utf-8", "replace"))
    return LogSlice(text, start + end, reset, start + len(data) >= size)


def plain_text(text: str) -> str:
    """Without colours, and of what was written over with a carriage return only the last.

    >>> plain_text("1%\\r50%\\r100%\\nnext\\r\\n")
    '100%\\nnext\\n'
    """
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    if "\r" not in text:
        return text
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
