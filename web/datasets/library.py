"""The datasets of a server: folders of pictures below one root. Torch-free.

Only what lies in the root itself is a dataset; links are never followed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from web.datasets.names import CAPTIONS, PICTURES, bad_dataset_name, suffix_of
from web.datasets.trash import Trash
from web.files import safe_path
from web.problems import conflict, invalid, not_found
from web.remembered import FolderMemo

CACHES = frozenset(("_controls", "_latent_cache", "_t_e_cache", "_clip_vision_cache"))
MOST_FILES = 200_000
# One change at a time: what was compared must still hold when it is written.
CHANGING = threading.RLock()
_SUMMARIES = FolderMemo()


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """A dataset at a glance. changed_at: seconds since 1970, of its newest file."""

    name: str
    num_pictures: int
    num_captioned: int
    num_bytes: int
    changed_at: float


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a dataset: path below it ('/' between parts), size in bytes, time of its last change."""

    rel: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a dataset, and those that cannot be used with the reason."""

    files: dict[str, Entry]
    refused: list[tuple[str, str]]

    @property
    def pictures(self) -> list[Entry]:
        """The pictures, by name."""
        found = [entry for entry in self.files.values() if suffix_of(entry.rel) in PICTURES]
        return sorted(found, key=lambda entry: natural(entry.rel))

    def caption_of(self, rel: str) -> Entry | None:
        """The caption file of a picture, or None."""
        stem = rel[: len(rel) - len(suffix_of(rel))]
        return next((self.files[stem + end] for end in CAPTIONS if stem + end in self.files), None)


def natural(text: str) -> tuple[object, ...]:
    """A key that sorts 2.png before 10.png."""
    parts: list[object] = []
    digits = ""
    for letter in text.casefold():
        if letter.isascii() and letter.isdigit():
            digits += letter
            continue
        if digits:
            parts.append((0, int(digits[:50]), digits))
            digits = ""
        parts.append((1, ord(letter), letter))
    if digits:
        parts.append((0, int(digits[:50]), digits))
    return (*parts, (2, 0, text))


@dataclass(frozen=True, slots=True)
class Library:
    """The datasets below `root`; what is deleted goes to `trash`, what is remembered lies in `data_root`."""

    root: Path
    data_root: Path

    @property
    def trash(self) -> Trash:
        """Where deleted things wait."""
        return Trash(self.data_root / "trash", self.root)

    def names(self) -> list[str]:
        """The names of all datasets, sorted."""
        try:
            with os.scandir(self.root) as entries:
                found = [entry.name for entry in entries if _is_dataset(entry)]
        except FileNotFoundError:
            return []
        return sorted(found, key=natural)

    def links(self) -> list[str]:
        """Names in the root that are links to folders, which are not followed."""
        try:
            with os.scandir(self.root) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if entry.is_symlink() and entry.is_dir() and _visible(entry.name)
                )
        except FileNotFoundError:
            return []

    def folder(self, name: str) -> Path:
        """The folder of a dataset. Raises 404."""
        if "/" in name:
            raise not_found("this dataset")
        try:
            path = safe_path(self.root, name)
        except UnicodeEncodeError:
            raise not_found("this dataset") from None
        if not path.is_dir():
            raise not_found(f"dataset {name}")
        return path

    def create(self, name: str) -> Path:
        """A new, empty dataset. Raises 409, 422."""
        reason = bad_dataset_name(name)
        if reason is not None:
            raise invalid(f"the name {name[:120]!r} {reason}", "/name")
        with CHANGING:
            if name.casefold() in {path.name.casefold() for path in _children(self.root)}:
                raise conflict(f"Dataset already exists: {name}")
            self.root.mkdir(parents=True, exist_ok=True)
            path = self.root / name
            path.mkdir()
        return path

    def rename(self, name: str, new: str) -> Path:
        """Give a dataset another name. Raises 404, 409, 422."""
        reason = bad_dataset_name(new)
        if reason is not None:
            raise invalid(f"the name {new[:120]!r} {reason}", "/name")
        with CHANGING:
            path = self.folder(name)
            others = {each.name.casefold() for each in _children(self.root) if each.name != name}
            if new.casefold() in others:
                raise conflict(f"Dataset already exists: {new}")
            return path.rename(self.root / new)

    def delete(self, name: str) -> str:
        """Move a dataset to the trash; the id that restores it. Raises 404."""
        with CHANGING:
            return self.trash.put_dataset(self.folder(name))

    def summary(self, name: str) -> DatasetSummary:
        """A dataset at a glance, as of two seconds ago at most if files are written in place. Raises 404."""
        return self._summary_of(name, self.folder(name))

    def summaries(self) -> list[DatasetSummary]:
        """Every dataset at a glance, sorted by name."""
        found = []
        for name in self.names():
            with suppress(FileNotFoundError):  # deleted since it was listed
                found.append(self._summary_of(name, self.root / name))
        return found

    def _summary_of(self, name: str, folder: Path) -> DatasetSummary:
        def read() -> tuple[DatasetSummary, set[Path]]:
            listing = scan(folder)
            folders = {folder, *((folder / rel).parent for rel in listing.files)}
            return _summary(name, folder, listing), folders

        return _SUMMARIES.get(folder, read)

    def listing(self, name: str) -> Listing:
        """The files of a dataset, its folders included. Raises 404."""
        return scan(self.folder(name))


def _summary(name: str, folder: Path, listing: Listing) -> DatasetSummary:
    pictures = listing.pictures
    captions = [listing.caption_of(entry.rel) for entry in pictures]
    newest = max((entry.mtime_ns for entry in listing.files.values()), default=0)
    return DatasetSummary(
        name=name, num_pictures=len(pictures),
        num_captioned=sum(caption is not None and caption.size > 0 for caption in captions),
        num_bytes=sum(entry.size for entry in listing.files.values()),
        changed_at=newest / 1e9 or folder.stat().st_mtime,
    )  # fmt: skip


def scan(folder: Path) -> Listing:
    """The files below a folder. Links, hidden files and caches are passed over."""
    files: dict[str, Entry] = {}
    refused: list[tuple[str, str]] = []
    for rel, entry in _walk(folder, ""):
        if len(files) >= MOST_FILES:
            refused.append(("…", f"only the first {MOST_FILES} files are shown"))
            break
        reason = _unusable(rel, entry)
        if reason is not None:
            refused.append((rel.encode("utf-8", "replace").decode(), reason))
            continue
        stat = entry.stat(follow_symlinks=False)
        files[rel] = Entry(rel, stat.st_size, stat.st_mtime_ns)
    return Listing(files, refused)


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        found = sorted(
            (entry for entry in entries if not entry.name.startswith(".")), key=lambda each: each.name
        )
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in CACHES:
                yield from _walk(folder / entry.name, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry


def _unusable(rel: str, entry: os.DirEntry[str]) -> str | None:
    if entry.is_symlink():
        return "is a link, which is not followed"
    if not entry.is_file(follow_symlinks=False):
        return "is no file"
    try:
        rel.encode()
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    if any(letter in rel for letter in "\\:") or any(
        ord(letter) < 32 or ord(letter) == 127 for letter in rel
    ):
        return "has a name with signs that are not served; rename it"
    return None


def _visible(name: str) -> bool:
    return not name.startswith(".") and not name.startswith("__")


def _is_dataset(entry: os.DirEntry[str]) -> bool:
    if not _visible(entry.name) or not entry.is_dir(follow_symlinks=False):
        return False
    return _unusable_name(entry.name) is None


def _unusable_name(name: str) -> str | None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    return "has signs that are not served" if any(sign in name for sign in "\\:") else None


def _children(root: Path) -> list[Path]:
    return list(root.iterdir()) if root.is_dir() else []
