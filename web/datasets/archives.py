"""Zip files that users send: refused as a whole if they try anything, unpacked file by file otherwise.

Nothing a zip says about itself is believed: bytes are counted while they are written. Torch-free.
"""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from web.datasets.names import ARCHIVES, CAPTIONS, PICTURES, suffix_of
from web.datasets.uploads import (
    MOST_PICTURE_BYTES,
    MOST_TOTAL_BYTES,
    Outcome,
    Sent,
    check_space,
    copy_counted,
)
from web.problems import ApiError

MOST_ENTRIES = 5000
MOST_RATIO = 200  # pictures do not shrink, and text shrinks by ten or so
SMALL = 1024**2  # below this the ratio says nothing
NESTED = frozenset((*ARCHIVES, ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz"))
_LITTER = frozenset(("thumbs.db", "desktop.ini"))


def unpack(
    archive: Path, name: str, place: Path, outcome: Outcome, budget: int = MOST_TOTAL_BYTES
) -> list[Sent]:
    """The pictures and captions of a zip, written into `place`. Raises 413, 415, 422, 507."""
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            for entry in _checked(entries):
                _refuse_bad(entry, name)
            return _unpack(opened, entries, place, outcome, budget)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ApiError(415, "web.bad_zip", f"{name} is no zip file that can be read") from None
    except (NotImplementedError, RuntimeError):
        raise ApiError(
            415, "web.bad_zip", f"{name} is encrypted or packed in a way that is not read"
        ) from None


def _checked(entries: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    if len(entries) > MOST_ENTRIES:
        raise ApiError(413, "web.too_large", f"the zip holds more than {MOST_ENTRIES} files; send several")
    if sum(entry.file_size for entry in entries) > MOST_TOTAL_BYTES:
        raise ApiError(
            413, "web.too_large", f"the zip unpacks to more than {MOST_TOTAL_BYTES // 1024**3} GiB"
        )
    return entries


def _refuse_bad(entry: zipfile.ZipInfo, name: str) -> None:
    """Raise for an entry that no honest zip of pictures has."""
    raw = getattr(entry, "orig_filename", entry.filename)
    parts = raw.replace("\\", "/").split("/")
    mode = entry.external_attr >> 16
    if raw.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in raw or "\\" in raw:
        raise ApiError(
            422, "web.bad_zip", f"{name} holds a file whose path leads out of it; nothing was unpacked"
        )
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ApiError(422, "web.bad_zip", f"{name} holds a link or device; nothing was unpacked")
    if suffix_of(raw) in NESTED:
        raise ApiError(415, "web.bad_zip", f"{name} holds another archive; nothing was unpacked")
    if entry.file_size > SMALL and entry.file_size > MOST_RATIO * max(1, entry.compress_size):
        raise ApiError(413, "web.too_large", f"{name} unpacks to far more than it is; nothing was unpacked")


def _unpack(
    opened: zipfile.ZipFile, entries: list[zipfile.ZipInfo], place: Path, outcome: Outcome, budget: int
) -> list[Sent]:
    found: list[Sent] = []
    check_space(place, sum(entry.file_size for entry in entries))
    for number, entry in enumerate(entries):
        parts = entry.filename.split("/")
        if (
            entry.is_dir()
            or parts[0] == "__MACOSX"
            or parts[-1].startswith(".")
            or parts[-1].lower() in _LITTER
        ):
            continue
        suffix = suffix_of(entry.filename)
        if suffix not in PICTURES and suffix not in CAPTIONS:
            outcome.skip(
                entry.filename, "is of a kind that is not taken: png, jpg, webp; captions txt, caption, json"
            )
            continue
        target = place / f"zip-{len(list(place.iterdir()))}-{number}{suffix}"
        with opened.open(entry) as source:
            most = min(MOST_PICTURE_BYTES, budget, max(entry.file_size, 1))
            budget -= copy_counted(cast(BinaryIO, source), target, most)
        found.append(Sent(parts[-1], target, str(PurePosixPath(entry.filename).parent)))
    return found
