"""Files that users send into a dataset: looked into, named, put in place. Nothing is overwritten unasked.

A caption belongs to the pictures of its stem. Where a picture needs another name, its caption goes along.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from toolkit.runs import atomic
from web.datasets import captions
from web.datasets.captions import MOST_BYTES
from web.datasets.library import CHANGING, Library, scan
from web.datasets.names import CAPTIONS, PICTURES, clean_stem, folded, free_stem, last_part, suffix_of
from web.pictures import check_pixels
from web.problems import ApiError

MOST_PICTURE_BYTES = 256 * 1024**2
MOST_TOTAL_BYTES = 4 * 1024**3
MOST_FILES = 1000  # in one request; more come in several
RESERVE_BYTES = 256 * 1024**2  # left free on the disk
STALE_S = 24 * 3600.0
_PIECE = 1024**2
_SUFFIX = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "WEBP": (".webp",)}
_decoding = threading.Semaphore(2)  # each holds a whole picture in memory


@dataclass(frozen=True, slots=True)
class Sent:
    """A file that was sent: the name and folder its sender gave it, and where its bytes lie now."""

    name: str
    path: Path
    group: str = ""


@dataclass(slots=True)
class Outcome:
    """What became of the files: (name given, name it has now), and (name given, why not)."""

    saved: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def skip(self, name: str, reason: str) -> None:
        """Note a file that was left out."""
        self.skipped.append((shown(name), reason))


def shown(name: str) -> str:
    """A name as it is told back: whatever it holds, one short line of text."""
    return "".join(letter if letter.isprintable() else "�" for letter in last_part(name))[:200]


@contextmanager
def staging(library: Library) -> Iterator[Path]:
    """A folder on the disk of the datasets, gone when the block ends; old ones of killed servers go too."""
    root = library.root / ".uploads"
    root.mkdir(parents=True, exist_ok=True)
    for old in root.iterdir():
        if old.stat(follow_symlinks=False).st_mtime < time.time() - STALE_S:
            atomic.remove(old)
    place = Path(tempfile.mkdtemp(prefix="in-", dir=root))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def check_space(folder: Path, wanted: int) -> None:
    """Raise 507 unless so many bytes can be written and some are left."""
    free = shutil.disk_usage(folder).free
    if wanted + RESERVE_BYTES > free:
        raise ApiError(507, "web.disk_full", f"the disk has only {free // 1024**2} MiB free")


def copy_counted(source: BinaryIO, target: Path, most: int) -> int:
    """Copy a file, counting what really comes; the number of bytes. Raises 413, 507."""
    count = 0
    with target.open("xb") as out:
        while piece := source.read(_PIECE):
            count += len(piece)
            if count > most:
                raise ApiError(413, "web.too_large", f"a file is larger than {most // 1024**2 or 1} MiB")
            if count % (64 * _PIECE) < _PIECE:
                check_space(target.parent, 0)
            out.write(piece)
    return count


def check_picture(path: Path, suffix: str) -> str:
    """The suffix that fits what a picture really is; the whole of it is read. Raises 413, 415."""
    from PIL import Image

    with _decoding, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                kind = image.format or ""
                check_pixels(image.width, image.height)
                image.draft("RGB", (256, 256))
                image.load()
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise ApiError(413, "web.too_large", "has far more than 50 million pixels") from None
        # Pillow's words for what it cannot read.
        except (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError):
            raise ApiError(
                415, "web.no_picture", "is no png, jpg or webp that can be read, whatever its name"
            ) from None
    fitting = _SUFFIX[kind]
    return suffix if suffix in fitting else fitting[0]


def check_caption(path: Path, suffix: str) -> str:
    """The text of a caption file. Raises 413, 415."""
    if path.stat().st_size > MOST_BYTES:
        raise ApiError(413, "web.too_large", f"is longer than {MOST_BYTES // 1024} KiB")
    found = captions.read_file(path.parent, path.name)
    if found.problem is not None:
        raise ApiError(415, "web.no_caption", found.problem)
    if "\0" in path.read_text(encoding="utf-8-sig"):
        raise ApiError(415, "web.no_caption", "is no text")
    return found.text


def add_files(library: Library, name: str, sent: Iterable[Sent], *, replace: bool = False) -> Outcome:
    """Put pictures and captions into a dataset. replace: a caption that is there gives way (into the trash).

    Raises 404; what is wrong with one file is told in the outcome.
    """
    library.folder(name)
    outcome = Outcome()
    groups: dict[tuple[str, str], tuple[list[_Picture], list[Sent]]] = {}
    for each in sent:
        stem, suffix = last_part(each.name), suffix_of(each.name)
        key = (each.group, folded(stem[: len(stem) - len(suffix)]))
        pictures, texts = groups.setdefault(key, ([], []))
        try:
            if suffix in PICTURES:
                pictures.append(_picture(each, suffix))
            elif suffix in CAPTIONS:
                check_caption(each.path, suffix)
                texts.append(each)
            else:
                outcome.skip(
                    each.name, "is of a kind that is not taken: png, jpg, webp; captions txt, caption, json"
                )
        except ApiError as error:
            outcome.skip(each.name, error.detail)
    with CHANGING:
        place = _Place(library, name, replace, outcome)
        for pictures, texts in groups.values():
            place.put(pictures, texts)
    return outcome


@dataclass(frozen=True, slots=True)
class _Picture:
    sent: Sent
    suffix: str
    sha256: str


def _picture(each: Sent, suffix: str) -> _Picture:
    size = each.path.stat().st_size
    if size > MOST_PICTURE_BYTES:
        raise ApiError(413, "web.too_large", f"is larger than {MOST_PICTURE_BYTES // 1024**2} MiB")
    fitting = check_picture(each.path, suffix)
    return _Picture(each, fitting, sha256_of(each.path))


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Place:
    """Where files go: the dataset as it is while they are put into it."""

    def __init__(self, library: Library, name: str, replace: bool, outcome: Outcome) -> None:
        self.library, self.replace, self.outcome = library, replace, outcome
        self.folder = library.folder(name)
        listing = scan(self.folder)
        self.sizes: dict[int, list[str]] = {}
        for entry in listing.pictures:
            self.sizes.setdefault(entry.size, []).append(entry.rel)
        self.hashes: dict[str, str] = {}
        self.stems: dict[str, list[str]] = {}
        for entry in listing.pictures:
            self.stems.setdefault(folded(captions.stem_of(entry.rel)), []).append(entry.rel)
        # Whatever lies here keeps its name, links too; a caption without a picture may get one.
        self.taken = {
            folded(path.stem) for path in self.folder.iterdir() if suffix_of(path.name) not in CAPTIONS
        }

    def put(self, pictures: list[_Picture], texts: list[Sent]) -> None:
        """The pictures of one stem with their captions."""
        targets = [target for target in map(self._put_picture, pictures) if target is not None]
        for text in texts:
            stem = last_part(text.name)
            stem = folded(stem[: len(stem) - len(suffix_of(stem))])
            found = targets or ([] if pictures else self.stems.get(stem, []))
            if not found:
                self.outcome.skip(text.name, "there is no picture of this name")
            self._put_captions(text, found)

    def _put_picture(self, picture: _Picture) -> str | None:
        """Where the picture lies now, also if it lay there before."""
        twin = self._twin(picture)
        if twin is not None:
            self.outcome.skip(picture.sent.name, f"is the same picture as {twin}")
            return twin
        stem = free_stem(clean_stem(picture.sent.name), self.taken)
        target = stem + picture.suffix
        atomic.replace(picture.sent.path, self.folder / target)
        self.taken.add(folded(stem))
        self.stems.setdefault(folded(stem), []).append(target)
        self.sizes.setdefault((self.folder / target).stat().st_size, []).append(target)
        self.hashes[target] = picture.sha256
        self.outcome.saved.append((shown(picture.sent.name), target))
        return target

    def _twin(self, picture: _Picture) -> str | None:
        for rel in self.sizes.get(picture.sent.path.stat().st_size, []):
            if rel not in self.hashes:
                self.hashes[rel] = sha256_of(self.folder / rel)
            if self.hashes[rel] == picture.sha256:
                return rel
        return None

    def _put_captions(self, sent: Sent, targets: list[str]) -> None:
        text = captions.read_file(sent.path.parent, sent.path.name).text
        for rel in dict.fromkeys(targets):
            now = captions.read(self.folder, rel)
            if now.file is not None and (now.text or now.problem):
                if now.text == text:
                    self.outcome.skip(sent.name, f"{rel} has this caption already")
                    continue
                if not self.replace:
                    self.outcome.skip(sent.name, f"{rel} has another caption; choose to replace captions")
                    continue
                self.library.trash.put_files(self.folder, [now.file])
                now = captions.read(self.folder, rel)
            suffix = suffix_of(sent.name)
            file = captions.stem_of(rel) + suffix
            if now.file is not None and now.file != file:
                captions.put(self.folder, rel, text, now)  # an empty file of another kind is filled
                file = now.file
            else:
                atomic.write_bytes(self.folder / file, _tidy(sent.path, suffix, text), durable=False)
            self.outcome.saved.append((shown(sent.name), file))


def _tidy(path: Path, suffix: str, text: str) -> bytes:
    """The bytes of a caption file: JSON with all it holds, text cleaned."""
    if suffix == ".json":
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
    return f"{captions.clean(text)}\n".encode()
