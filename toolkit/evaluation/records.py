"""What was measured so far, in a file that a later start goes on from. Torch-free.

One JSON object a line, appended whole and flushed: a line that a kill cut short is not read. The first line
names the design; a file of another design is set aside, never mixed in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from toolkit.errors import Problem, RunError

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """Losses of one image: losses[condition][draw] for the draws from `first` on, t[draw] beside them."""

    key: str
    stage: str
    first: int
    losses: list[list[float]]
    t: list[float]


class RecordFile:
    """Append-only records of one design. Raises RunError if the file cannot be written."""

    def __init__(self, path: Path, design: str) -> None:
        self.path = path
        self.design = design
        self.notes: list[str] = []

    def load(self) -> list[Record]:
        """The records of this design that were written whole; those of another are set aside."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        rows = [row for row in map(_parse, lines) if row is not None]
        header = rows[0] if rows else {}
        if header.get("schema_version") != SCHEMA_VERSION or header.get("design") != self.design:
            aside = self.path.with_name(f"{self.path.name}.other")
            self.path.replace(aside)
            self.notes.append(f"{self.path.name} holds measurements of other settings; moved to {aside.name}")
            return []
        names = [each.name for each in fields(Record)]
        return [Record(*(row[name] for name in names)) for row in rows[1:] if all(n in row for n in names)]

    def append(self, records: Iterable[Record]) -> None:
        """Add records, on disk when this returns."""
        text = "".join(json.dumps(asdict(record), separators=(",", ":")) + "\n" for record in records)
        try:
            if not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                text = json.dumps({"schema_version": SCHEMA_VERSION, "design": self.design}) + "\n" + text
            elif not _ends_with_newline(self.path):
                text = "\n" + text  # after a line that a kill cut short
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = f"cannot be written: {error.strerror or error}"
            raise RunError(
                Problem("eval.cannot_write", reason, file=str(self.path), remedy="choose another --out-dir")
            ) from error

    def remove(self) -> None:
        """Delete the file: what it held is in the report now."""
        self.path.unlink(missing_ok=True)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
