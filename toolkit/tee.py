"""Copying what is printed to a file that the user names. Torch-free."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from toolkit.errors import UserError


class Tee:
    """A text stream that also writes to a log file, at once."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream = stream
        self._log = log

    def write(self, text: str) -> int:
        """Write to both; returns the number of characters."""
        self._log.write(text)
        self._log.flush()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def teed(file: str | None) -> Iterator[None]:
    """Copy stdout and stderr to a file, appending; its folders are made. Raises UserError."""
    if file is None:
        yield
        return
    try:
        path = Path(file).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("a", encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write the log {file}: {error.strerror}") from None
    streams = sys.stdout, sys.stderr
    with log:
        sys.stdout, sys.stderr = Tee(streams[0], log), Tee(streams[1], log)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams
