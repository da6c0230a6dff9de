"""Remembers which pictures were verified, so that a second scan only looks at sizes and times. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from toolkit.data.image_files import ImageFacts

SCHEMA_VERSION = 2
# A file this young may change again without its time changing (2 s on FAT), so it is not remembered yet.
SETTLING_S = 2.5


def user_cache_root() -> Path:
    """The user's cache folder for this program: $XDG_CACHE_HOME/ai-toolkit, else ~/.cache/ai-toolkit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ai-toolkit"


def _stamp(stat: os.stat_result) -> list[int]:
    # The change time betrays a file swapped for one of equal size and (preserved) modification time.
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _range(values: Any) -> tuple[int, int] | None:
    return None if values is None else (int(values[0]), int(values[1]))


class ImageMemo:
    """Facts of the pictures of one dataset (a folder or a list), kept in one JSON file outside of it.

    kind: what the pictures are looked at as; each kind has files of its own. forget: begin without what was
    remembered, so that every picture is verified anew.
    """

    def __init__(
        self,
        dataset_folder: Path,
        cache_folder: Path | None = None,
        *,
        kind: str = "images",
        forget: bool = False,
    ) -> None:
        folder = Path(os.path.realpath(dataset_folder))
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:32]
        self.path = (cache_folder or user_cache_root()) / kind / f"{name}.json"
        self._folder = folder
        self._old: dict[str, Any] = {} if forget else self._read()
        self._new: dict[str, dict[str, Any]] = {}

    def _read(self) -> dict[str, Any]:
        """What was remembered; nothing at all if the file is missing, damaged or of another version."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
            return {}
        files = content.get("files")
        return files if isinstance(files, dict) else {}

    def get(self, name: str, stat: os.stat_result) -> ImageFacts | None:
        """The facts of the file `name` (relative) if it is unchanged since they were found."""
        entry = self._old.get(name)
        if not isinstance(entry, dict) or entry.get("stamp") != _stamp(stat):
            return None
        try:
            facts = ImageFacts(
                str(entry["sha256"]),
                int(entry["width"]),
                int(entry["height"]),
                tuple(entry["remarks"]),
                _range(entry["mask_range"]),
            )
        except (LookupError, TypeError, ValueError):
            return None
        self._new[name] = entry
        return facts

    def put(self, name: str, stat: os.stat_result, facts: ImageFacts) -> None:
        """Remember the facts of a file whose `stat` was taken before it was read."""
        if time.time() - stat.st_mtime < SETTLING_S:
            return
        self._new[name] = {
            "stamp": _stamp(stat),
            "sha256": facts.sha256,
            "width": facts.width,
            "height": facts.height,
            "remarks": list(facts.remarks),
            "mask_range": facts.mask_range,
        }

    def save(self) -> None:
        """Replace the file by what this scan used. Raises OSError if the cache folder cannot be written."""
        if self._new == self._old:
            return
        content = {"schema_version": SCHEMA_VERSION, "folder": str(self._folder), "files": self._new}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(f".{os.getpid()}.tmp")
        beside.write_text(json.dumps(content), encoding="utf-8")
        beside.replace(self.path)
