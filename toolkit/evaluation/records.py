"""What was measured so far, in a file that a later start goes on from. Torch-free.

One JSON object a line, appended whole and flushed, with a digest of itself at its end: a line that a kill cut
short or a disk damaged is not read, and what it said is measured again. The first line names the design; a
file of another design is set aside, never mixed in. In memory is where each record lies, never the records:
there may be very many.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from toolkit.errors import Problem, RunError
from toolkit.runs import atomic
from toolkit.seeding import keyed_seed

SCHEMA_VERSION = 2
_DIGEST = b',"digest":"%s"}'  # how a line ends


@dataclass(frozen=True, slots=True)
class Record:
    """Losses of one image: losses[condition][draw] for the draws from `first` on, t[draw] beside them."""

    key: str
    stage: str
    first: int
    losses: list[list[float]]
    t: list[float]


_NAMES = {each.name for each in fields(Record)}


class RecordFile:
    """Append-only records of one design. Raises RunError if the file cannot be read, written or removed."""

    def __init__(self, path: Path, design: str, tell: Callable[[str], None] = lambda text: None) -> None:
        self.path = path
        self.design = design
        self._tell = tell
        self._places: dict[int, int] = {}  # by a hash of stage, key and first draw: where the line begins

    def open(self) -> None:
        """Look up what an earlier start wrote whole.

        A file of another design is set aside, and one of this design that was set aside is taken up again.
        """
        self._places.clear()
        with atomic.reporting(self.path, "read"):
            found = _head(self.path)
            if found != self._header():
                self._change_places("cannot be read" if found == {} else "has measurements of other settings")
        with atomic.reporting(self.path, "read"), suppress(FileNotFoundError), self.path.open("rb") as file:
            place = len(file.readline())
            for line in file:
                self._add(_record(line), place)
                place += len(line)

    def _change_places(self, why: str) -> None:
        """Set the file aside, if it has anything, and bring one of this design in its place."""
        if self.path.exists() and self.path.stat().st_size:
            aside = self._free_name()
            self.path.replace(aside)
            self._tell(f"{self.path.name} {why}; moved to {aside.name}")
        for each in sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.other*")):
            if _head(each) == self._header():
                each.replace(self.path)
                self._tell(f"{each.name} has measurements of these settings: going on from there")
                return

    def _header(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, "design": self.design}

    def _free_name(self) -> Path:
        """Where the file can be set aside without losing another."""
        names = (f"{self.path.name}.other{number or ''}" for number in itertools.count())
        return next(path for path in map(self.path.with_name, names) if not path.exists())

    def gone(self) -> RunError:
        """The error for what was measured in this run and is not there any more."""
        reason = "does not hold any more what was measured: was it changed or deleted meanwhile?"
        remedy = "start again; what is left there is not measured twice"
        return RunError(Problem("eval.records_gone", reason, file=str(self.path), remedy=remedy))

    def __len__(self) -> int:
        return len(self._places)

    def get(self, stage: str, key: str, first: int) -> Record | None:
        """The last record of an image's stage from a draw on, or None if there is none (or no more)."""
        place = self._places.get(_hash(stage, key, first))
        if place is None:
            return None
        found = None
        with atomic.reporting(self.path, "read"), suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(place)
            found = _record(file.readline())
        asked = (stage, key, first)
        return found if found is not None and (found.stage, found.key, found.first) == asked else None

    def append(self, records: Sequence[Record]) -> None:
        """Add records, on disk when this returns."""
        lines = [_line(asdict(record)) for record in records]
        with atomic.reporting(self.path, size=sum(map(len, lines))):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                place = file.tell()
                head = b"" if place else _line(self._header())
                if place and not _ends_with_newline(self.path):
                    head = b"\n"  # after a line that a kill cut short
                file.write(head + b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
        place += len(head)
        for record, line in zip(records, lines, strict=True):
            self._add(record, place)
            place += len(line)

    def _add(self, record: Record | None, place: int) -> None:
        if record is not None:
            self._places[_hash(record.stage, record.key, record.first)] = place

    def remove(self) -> None:
        """Delete the file: what it held is in the report now."""
        atomic.remove(self.path)


def _head(path: Path) -> dict[str, Any] | None:
    """The first line of a file: None without one, empty if it cannot be made out."""
    try:
        with path.open("rb") as file:
            line = file.readline()
    except FileNotFoundError:
        return None
    return _parse(line) if line else None


def _hash(stage: str, key: str, first: int) -> int:
    return keyed_seed("eval-record", stage, key, first)


def _line(row: dict[str, Any]) -> bytes:
    body = json.dumps(row, separators=(",", ":"), allow_nan=False).encode()[:-1]
    return body + _DIGEST % _digest(body) + b"\n"


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=8).hexdigest().encode()


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _parse(line: bytes) -> dict[str, Any]:
    """The object of a line without its digest; an empty one for a line that is not as it was written."""
    line = line.removesuffix(b"\n")
    body = line[: -len(_DIGEST % _digest(b""))]
    if line != body + _DIGEST % _digest(body):
        return {}
    row: dict[str, Any] = json.loads(body + b"}")
    return row


def _record(line: bytes) -> Record | None:
    row = _parse(line)
    return Record(**row) if row.keys() == _NAMES else None
