"""Zip files made while they are sent: nothing is kept in memory or on the disk."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

_PIECE = 256 * 1024


class _Outlet(io.RawIOBase):
    """Where the zip writer writes; what it wrote is taken out at once."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: object) -> int:
        """Keep a piece."""
        piece = bytes(data)  # type: ignore[call-overload]
        self._pieces.append(piece)
        return len(piece)

    def take(self) -> bytes:
        """What was written since the last time."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def zip_stream(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """A zip of (name in it, path) pairs, uncompressed: pictures do not shrink. Lost files are left out."""
    outlet = _Outlet()
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, path in files:
            try:
                source = path.open("rb")
            except OSError:
                continue  # deleted since it was listed
            with source, archive.open(zipfile.ZipInfo.from_file(path, name), "w", force_zip64=True) as entry:
                while piece := source.read(_PIECE):
                    entry.write(piece)
                    yield outlet.take()
            yield outlet.take()
    yield outlet.take()
