"""What was measured so far, in a file that a later start goes on from. Torch-free.

One JSON object a line, appended whole and flushed: a line that a kill cut short is not read. The first line
names the design; a file of another design is set aside, never mixed in. In memory is where each record lies,
never the records: there may be very many.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from toolkit.errors import Problem, RunError
from toolkit.seeding import keyed_seed

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """Losses of one image: losses[condition][draw] for the draws from `first` on, t[draw] beside them."""

    key: str
    stage: str
    first: int
    losses: list[list[float]]
    t: list[float]


_NAMES = tuple(each.name for each in fields(Record))


class RecordFile:
    """Append-only records of one design. Raises RunError if the file cannot be read or written."""

    def __init__(self, path: Path, design: str) -> None:
        self.path = path
        self.design = design
        self.notes: list[str] = []
        self._places: dict[int, int] = {}  # by a hash of stage, key and first draw: where the line begins

    def open(self) -> None:
        """Look up what an earlier start wrote whole; a file of another design is set aside."""
        self._places.clear()
        try:
            with self.path.open("rb") as file:
                header = _parse(file.readline())
                ours = header.get("schema_version") == SCHEMA_VERSION and header.get("design") == self.design
                place = file.tell()
                for line in file if ours else ():
                    self._add(_record(line), place)
                    place += len(line)
            if not ours:
                aside = self._free_name()
                self.path.replace(aside)
                told = f"{self.path.name} holds measurements of other settings; moved to {aside.name}"
                self.notes.append(told)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refused("read", error) from error

    def _free_name(self) -> Path:
        """Where the file can be set aside without losing another."""
        names = (f"{self.path.name}.other{number or ''}" for number in itertools.count())
        return next(path for path in map(self.path.with_name, names) if not path.exists())

    def _refused(self, doing: str, error: OSError) -> RunError:
        reason, remedy = f"cannot be {doing}: {error.strerror or error}", "choose another --out-dir"
        return RunError(Problem("eval.cannot_write", reason, file=str(self.path), remedy=remedy))

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
        try:
            with self.path.open("rb") as file:
                file.seek(place)
                found = _record(file.readline())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused("read", error) from error
        asked = (stage, key, first)
        return found if found is not None and (found.stage, found.key, found.first) == asked else None

    def append(self, records: Sequence[Record]) -> None:
        """Add records, on disk when this returns."""
        lines = [_line(asdict(record)) for record in records]
        try:
            if not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                head = _line({"schema_version": SCHEMA_VERSION, "design": self.design})
            else:
                head = b"" if _ends_with_newline(self.path) else b"\n"  # after a line that a kill cut short
            with self.path.open("ab") as file:
                place = file.tell() + len(head)
                file.write(head + b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._refused("written", error) from error
        for record, line in zip(records, lines, strict=True):
            self._add(record, place)
            place += len(line)

    def _add(self, record: Record | None, place: int) -> None:
        if record is not None:
            self._places[_hash(record.stage, record.key, record.first)] = place

    def remove(self) -> None:
        """Delete the file: what it held is in the report now."""
        self.path.unlink(missing_ok=True)


def _hash(stage: str, key: str, first: int) -> int:
    return keyed_seed("eval-record", stage, key, first)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _parse(line: bytes) -> dict[str, Any]:
    """The object of a line; an empty one for a line that a kill cut short, or that is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _record(line: bytes) -> Record | None:
    row = _parse(line)
    return Record(*(row[name] for name in _NAMES)) if all(name in row for name in _NAMES) else None
