"""Reports of images on disk instead of in memory: many images cost no more than few. Torch-free."""

from __future__ import annotations

import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from toolkit.evaluation.report import ImageReport
from toolkit.runs import atomic


class ImageStore(Sequence[ImageReport]):
    """The reports appended, in a file without a name that is gone with this object.

    Reads as a list does; each access reads and parses, so what is changed there is not changed here. Raises
    RunError if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with atomic.reporting(folder / "images"):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as this object
        weakref.finalize(self, self._file.close)
        self._ends = array("Q", [0])

    def append(self, image: ImageReport) -> None:
        """Add a report."""
        data = image.model_dump_json().encode()
        with atomic.reporting(self._folder / "images", size=len(data)):
            self._file.seek(self._ends[-1])
            self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> ImageReport: ...

    @overload
    def __getitem__(self, index: slice) -> list[ImageReport]: ...

    def __getitem__(self, index: int | slice) -> ImageReport | list[ImageReport]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        self._file.seek(self._ends[place])
        return ImageReport.model_validate_json(self._file.read(self._ends[place + 1] - self._ends[place]))

    def __iter__(self) -> Iterator[ImageReport]:
        return map(self.__getitem__, range(len(self)))
