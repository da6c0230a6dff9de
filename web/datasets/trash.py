"""What was deleted: moved aside in whole, with a note of where it lay, until it is restored or erased.

Each deletion is a folder of its own: `note.json` beside `files/`. Torch-free.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.runs import atomic
from web.problems import conflict, not_found

_ID = re.compile(r"\d{13}-[0-9a-f]{8}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Deleted:
    """A deletion. files: paths relative to the dataset; empty where the dataset went as a whole."""

    id: str
    dataset: str
    files: tuple[str, ...]
    at: float
    num_bytes: int

    @property
    def is_dataset(self) -> bool:
        """Whether the whole dataset was deleted."""
        return not self.files


@dataclass(frozen=True, slots=True)
class Trash:
    """The deletions below `folder`, of datasets below `root`."""

    folder: Path
    root: Path

    def put_dataset(self, path: Path) -> str:
        """Move the folder of a dataset here; the id of the deletion."""
        return self._put(path.name, path, ())

    def put_files(self, path: Path, files: Sequence[str]) -> str:
        """Move files of the dataset in `path` here, or copies of them; the id of the deletion."""
        return self._put(path.name, path, tuple(files))

    def _put(self, name: str, path: Path, files: tuple[str, ...]) -> str:
        identifier = f"{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(4)}"
        place = self.folder / identifier
        (place / "files").mkdir(parents=True)
        sizes = (
            [path / file for file in files]
            if files
            else [each for each in path.rglob("*") if not each.is_symlink()]
        )
        size = sum(each.stat().st_size for each in sizes if each.is_file())
        note = {"dataset": name, "files": list(files), "at": time.time(), "num_bytes": size}
        atomic.write_json(place / "note.json", note)
        if files:
            for file in files:
                target = place / "files" / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path / file, target)
        else:
            shutil.move(path, place / "files" / name)
        return identifier

    def all(self) -> list[Deleted]:
        """Every deletion, the newest first."""
        try:
            found = sorted(
                (path.name for path in self.folder.iterdir() if _ID.fullmatch(path.name)), reverse=True
            )
        except FileNotFoundError:
            return []
        deleted = (self._read(identifier) for identifier in found)
        return [each for each in deleted if each is not None]

    def get(self, identifier: str) -> Deleted:
        """A deletion. Raises 404."""
        found = self._read(identifier) if _ID.fullmatch(identifier) else None
        if found is None:
            raise not_found("this deletion")
        return found

    def _read(self, identifier: str) -> Deleted | None:
        try:
            note = json.loads((self.folder / identifier / "note.json").read_text(encoding="utf-8"))
            return Deleted(
                identifier,
                str(note["dataset"]),
                tuple(note["files"]),
                float(note["at"]),
                int(note["num_bytes"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def restore(self, identifier: str) -> Deleted:
        """Put back what was deleted. Raises 404, and 409 if something lies there now."""
        deleted = self.get(identifier)
        place, target = self.folder / identifier / "files", self.root / deleted.dataset
        if target.is_symlink():
            raise conflict(f"{deleted.dataset} is a link now")
        if deleted.is_dataset:
            if target.exists():
                raise conflict(f"there is another dataset {deleted.dataset} now; rename or delete that first")
            self.root.mkdir(parents=True, exist_ok=True)
            shutil.move(place / deleted.dataset, target)
        else:
            self._restore_files(deleted, place, target)
        atomic.remove(self.folder / identifier)
        return deleted

    def _restore_files(self, deleted: Deleted, place: Path, target: Path) -> None:
        if not target.is_dir():
            raise conflict(f"the dataset {deleted.dataset} is gone; restore that first")
        there = [file for file in deleted.files if (target / file).exists() or (target / file).is_symlink()]
        if there:
            raise conflict(f"there is another {there[0]} now; rename or delete that first")
        for file in deleted.files:
            inner = target
            for part in file.split("/")[:-1]:
                inner = inner / part
                if inner.is_symlink():
                    raise conflict(f"{part} is a link now")
            inner.mkdir(parents=True, exist_ok=True)
            shutil.move(place / file, target / file)

    def erase(self, identifier: str) -> None:
        """Remove a deletion for good. Raises 404."""
        self.get(identifier)
        atomic.remove(self.folder / identifier)
