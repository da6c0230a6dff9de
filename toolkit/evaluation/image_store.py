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
    RunError if the folder cannot be written, or its disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._place = folder / "reports of images"  # as messages call it
        # Without a buffer, which on a full disk would be written once more, and in vain, when it is closed.
        with atomic.reporting(self._place):
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - open as long as this
        weakref.finalize(self, self._file.close)
        self._ends = array("Q", [0])

    def append(self, image: ImageReport) -> None:
        """Add a report."""
        data = image.model_dump_json().encode()
        with atomic.reporting(self._place, size=len(data)):
            self._file.seek(self._ends[-1])
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
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
        with atomic.reporting(self._place, "read"):
            self._file.seek(self._ends[place])
            data = self._file.read(self._ends[place + 1] - self._ends[place])
        return ImageReport.model_validate_json(data)

    def __iter__(self) -> Iterator[ImageReport]:
        return map(self.__getitem__, range(len(self)))
