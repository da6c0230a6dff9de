"""Batches that a run passes over, on record, so that a run resumed from before them passes over them too.

`checkpoints/left_out.json`, written before the run goes on. Positions count micro-batches and mean something
for one order of the data only, so the record holds for its layout (pictures, batch size, seed) and is idle
under another.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.runs import atomic
from toolkit.runs.layout import check_schema

SCHEMA_VERSION = 1
NAME = "left_out.json"

Reason = Literal["out_of_memory", "non_finite"]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Micro-batches first to stop - 1, why, in which step, and the checkpoint that was gone back to."""

    reason: Reason
    step: int
    first: int
    stop: int
    files: list[str]
    back_to: int | None = None


class LeftOutRecord:
    """The entries of one run folder for one layout. Raises RunError if a newer program wrote them.

    damaged: the file is there and cannot be read, so nothing is passed over.
    """

    def __init__(self, root: Path, layout: str) -> None:
        self.path = root / NAME
        self.layout = layout
        self.entries: list[LeftOut] = []
        self.damaged = False
        try:
            content = json.loads(atomic.read_bytes(self.path))
            check_schema(content.get("schema_version"), self.path)
            if content["layout"] == layout:
                self.entries = [LeftOut(**entry) for entry in content["entries"]]
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError):
            self.damaged = True

    @property
    def positions(self) -> set[int]:
        """Every micro-batch that is passed over."""
        return {position for entry in self.entries for position in range(entry.first, entry.stop)}

    def add(self, entry: LeftOut) -> None:
        """Record one more; on the disk when this returns. Raises RunError."""
        self.entries.append(entry)
        self._write()

    def drop(self, count: int) -> None:
        """Forget the last `count` entries. Raises RunError."""
        del self.entries[len(self.entries) - count :]
        self._write()

    def times_back_to(self, step: int) -> int:
        """How often the run has gone back to the checkpoint of a step."""
        return sum(entry.back_to == step for entry in self.entries)

    def _write(self) -> None:
        content: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "layout": self.layout}
        content["entries"] = [asdict(entry) for entry in self.entries]
        atomic.write_json(self.path, content)
