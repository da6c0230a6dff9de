"""Pictures that vanish or change while a run reads them. Torch-free."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from toolkit.data.items import MediaItem
from toolkit.errors import DatasetError, Problem

MOST_NAMED = 20
REMEDY = "the same command goes on with the pictures that there are then"

Rest = ParamSpec("Rest")
Loaded = TypeVar("Loaded")


class Unchanged:
    """Holds pictures to what they were when they were scanned, by the hash that their item carries.

    A file is hashed when it is first read and afterwards only if its size or time has changed, so that a
    check costs microseconds and a file that was merely touched passes.
    """

    def __init__(self, items: Iterable[MediaItem]) -> None:
        self._sha256 = {item.path: item.sha256 for item in items}
        self._seen: dict[Path, tuple[int, int]] = {}

    def watching(
        self, load: Callable[Concatenate[Path, Rest], Loaded]
    ) -> Callable[Concatenate[Path, Rest], Loaded]:
        """`load`, which then also raises DatasetError for a file that is not the scanned one any more."""

        def load_same(path: Path, /, *args: Rest.args, **kwargs: Rest.kwargs) -> Loaded:
            if not path.exists():
                raise self._vanished()
            loaded = load(path, *args, **kwargs)
            try:
                same = self._is_same(path)
            except FileNotFoundError as error:
                raise self._vanished() from error
            if not same:
                reason = "the picture has changed since the run began"
                raise DatasetError(Problem("data.image_changed", reason, file=str(path), remedy=REMEDY))
            return loaded

        return load_same

    def _is_same(self, path: Path) -> bool:
        stat = os.stat(path)  # noqa: PTH116 - half of what Path.stat takes
        seen = (stat.st_size, stat.st_mtime_ns)
        if self._seen.get(path) == seen or path not in self._sha256:
            return True
        if hashlib.sha256(path.read_bytes()).hexdigest() != self._sha256[path]:
            return False
        self._seen[path] = seen
        return True

    def _vanished(self) -> DatasetError:
        """Every picture of the run that is gone: often it is a whole folder, or the disk that it was on."""
        gone = sorted(path for path in self._sha256 if not path.exists())
        problems = [
            Problem("data.image_gone", "the picture has vanished since the run began", file=str(path),
                    remedy=REMEDY)
            for path in gone[:MOST_NAMED]
        ]  # fmt: skip
        if len(gone) > MOST_NAMED:
            message = f"and {len(gone) - MOST_NAMED} more of {len(self._sha256)} pictures have vanished"
            problems.append(Problem("data.image_gone", message))
        return DatasetError(problems)
