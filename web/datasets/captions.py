"""Captions as they are edited: read, and changed only if nobody else did meanwhile. Torch-free."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from toolkit.runs import atomic
from web.datasets.library import CHANGING, Library, Listing
from web.datasets.names import CAPTIONS, PICTURES, suffix_of
from web.files import safe_file
from web.problems import ApiError, not_found

MOST_BYTES = 64 * 1024
MISSING = '"none"'


@dataclass(frozen=True, slots=True)
class Caption:
    """What a caption file says. etag: of its very bytes. problem: why it cannot be read, or None."""

    text: str
    etag: str
    file: str | None
    problem: str | None = None


def stem_of(rel: str) -> str:
    """The path of a picture without its suffix."""
    return rel[: len(rel) - len(suffix_of(rel))]


def picture_path(library: Library, name: str, rel: str) -> Path:
    """The file of a picture of a dataset. Raises 404."""
    folder = library.folder(name)
    if suffix_of(rel) not in PICTURES:
        raise not_found("this picture")
    try:
        return safe_file(folder, rel)
    except UnicodeEncodeError:
        raise not_found("this picture") from None


def caption_file(folder: Path, rel: str) -> str | None:
    """The caption file of a picture, relative to the dataset, or None. A link is none."""
    for suffix in CAPTIONS:
        path = folder / (stem_of(rel) + suffix)
        if path.is_file() and not path.is_symlink():
            return stem_of(rel) + suffix
    return None


def read(folder: Path, rel: str) -> Caption:
    """The caption of the picture `rel` of the dataset in `folder`."""
    return read_file(folder, caption_file(folder, rel))


def read_listed(folder: Path, listing: Listing, rel: str) -> Caption:
    """The same, for a dataset whose files are known."""
    entry = listing.caption_of(rel)
    return read_file(folder, None if entry is None else entry.rel)


def read_file(folder: Path, file: str | None) -> Caption:
    """What a caption file says."""
    if file is None:
        return Caption("", MISSING, None)
    try:
        with (folder / file).open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return Caption("", MISSING, None)
    except OSError as error:
        return Caption("", MISSING, file, f"cannot be read: {error.strerror or error}")
    etag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
    if len(data) > MOST_BYTES:
        return Caption("", etag, file, f"is larger than {MOST_BYTES // 1024} KiB")
    try:
        return Caption(_parse(file, data), etag, file)
    except UnicodeDecodeError:
        return Caption("", etag, file, "is not UTF-8; save it as UTF-8")
    except ValueError as error:
        return Caption("", etag, file, f"is no caption in JSON: {error}")


def _parse(file: str, data: bytes) -> str:
    text = data.decode("utf-8-sig")
    if not file.endswith(".json"):
        return text.strip()
    value = json.loads(text)
    found = value.get("caption", "") if isinstance(value, dict) else value
    if not isinstance(found, str):
        raise ValueError('expected a text, or an object with a text under "caption"')
    return found.strip()


def write(library: Library, name: str, rel: str, text: str, if_match: str | None = None) -> Caption:
    """Set the caption of a picture; an empty text empties the file. Raises 404, 412, 422.

    if_match: the etag that was read; if another caption is there by now, nothing is written.
    """
    _check(text)
    with CHANGING:
        picture_path(library, name, rel)
        folder = library.folder(name)
        now = read(folder, rel)
        if if_match not in (None, "*", now.etag):
            raise stale(now)
        return put(folder, rel, text, now)


def put(folder: Path, rel: str, text: str, now: Caption) -> Caption:
    """Write a caption where `now` was read. Only within CHANGING."""
    wanted = clean(text)
    if wanted == now.text and now.problem is None and (now.file is not None or not wanted):
        return now
    file = now.file or stem_of(rel) + CAPTIONS[0]
    path = folder / file
    atomic.write_bytes(path, _as_file(path, file, wanted), durable=False)
    return read_file(folder, file)


def _as_file(path: Path, file: str, text: str) -> bytes:
    if not file.endswith(".json"):
        return (text + "\n").encode() if text else b""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        value = {}
    changed = {**value, "caption": text} if isinstance(value, dict) else text
    return (json.dumps(changed, ensure_ascii=False, indent=2) + "\n").encode()


def stale(now: Caption) -> ApiError:
    """412: another caption is there by now, and what it says."""
    return ApiError(
        412, "web.stale", "the caption was changed elsewhere since it was read", headers={"ETag": now.etag},
        errors=[{"pointer": "/caption", "detail": now.text}],
    )  # fmt: skip


def clean(text: str) -> str:
    """A text as it is written: without blanks at its ends and signs that no text has."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        letter for letter in plain if letter in "\n\t" or (ord(letter) >= 32 and ord(letter) != 127)
    ).strip()


def _check(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ApiError(422, "web.invalid", "the caption holds signs that are no text") from None
    if size > MOST_BYTES - 1:
        raise ApiError(422, "web.invalid", f"the caption is longer than {MOST_BYTES // 1024} KiB")
