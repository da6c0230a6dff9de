"""log.txt: what the terminal shows, without the thousand states of a progress bar. Torch-free."""

from __future__ import annotations

import re
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from toolkit.errors import JobStopped, UserError
from toolkit.runs.atomic import reporting

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PIECES = re.compile(r"[^\r\n]+|\r|\n")


class LogFile:
    """Context manager: what is written to stdout and stderr also goes to `path`, as UTF-8 lines, appended.

    An exception that leaves the block is recorded with its traceback (a mistake of the user: with its lines).
    Raises RunError if the file cannot be opened; a disk that fills up later stops only the log.
    """

    def __init__(self, path: Path, *, progress_every: float = 10.0) -> None:
        self.path = Path(path)
        self._every = progress_every
        self._lock = threading.RLock()
        self._file: TextIO | None = None
        self._saved: tuple[TextIO, TextIO] | None = None

    def __enter__(self) -> LogFile:
        with reporting(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", errors="replace", newline="\n", buffering=1)
        self._saved = (sys.stdout, sys.stderr)
        sys.stdout = Tee(sys.stdout, self, self._every)
        sys.stderr = Tee(sys.stderr, self, self._every)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._saved is not None
        for stream, saved in zip(("stdout", "stderr"), self._saved, strict=True):
            tee = getattr(sys, stream)
            if isinstance(tee, Tee):  # else someone redirected it and did not undo that
                tee.finish()
            setattr(sys, stream, saved)
        if isinstance(error, UserError | JobStopped):
            notes = (f"note: {note}" for note in getattr(error, "__notes__", ()))
            self.line("\n".join([f"{type(error).__name__}: {error}", *notes]))
        elif error is not None and not isinstance(error, SystemExit):
            self.line("".join(traceback.format_exception(error)).rstrip("\n"))
        if self._file is not None:
            self._file.close()
            self._file = None

    def line(self, text: str) -> None:
        """Write one line to the file only."""
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(text + "\n")
            except OSError:
                self._file = None  # a full disk: the terminal still shows everything


class Tee:
    """A text stream that passes everything on and gives whole lines to the log; of `\\r` states, the last."""

    def __init__(self, stream: TextIO, log: LogFile, progress_every: float) -> None:
        self._stream = stream
        self._log = log
        self._every = progress_every
        self._lock = threading.RLock()
        self._line = ""
        self._returned = False  # a \r was seen: the next text replaces the line
        self._progress_at = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write to both; a terminal that has gone away or lacks a letter never ends the run."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError):
            pass  # the window was closed: the run and its log go on
        with self._lock:
            for piece in _PIECES.findall(_ESCAPES.sub("", text)):
                self._take(piece)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the terminal; the log is flushed at every line."""
        with suppress(OSError, ValueError):  # as in write
            self._stream.flush()

    def finish(self) -> None:
        """Log a last line that has no newline yet."""
        with self._lock:
            if self._line.strip():
                self._log.line(self._line)
            self._line, self._returned = "", False

    def _take(self, piece: str) -> None:
        if piece == "\n":
            if self._line.strip() or not self._returned:
                self._log.line(self._line.rstrip() if self._returned else self._line)
            self._line, self._returned = "", False
        elif piece == "\r":
            self._returned = True
            now = time.monotonic()
            if self._line.strip() and now - self._progress_at >= self._every:
                self._progress_at = now
                self._log.line(self._line.rstrip())
                self._line = ""
        else:
            self._line = piece if self._returned else self._line + piece
            self._returned = False
