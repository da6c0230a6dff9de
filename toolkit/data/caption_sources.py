"""The captions of a dataset's pictures: beside them, in a list, or the dataset's own default. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.captions import Caption, read_caption, tidy
from toolkit.data.findings import Findings
from toolkit.errors import DatasetError

CAPTION_SUFFIXES = (".txt", ".caption", ".json")
FOLDER_DEFAULT = "default"  # default.txt holds the caption of its folder's pictures that have none


@dataclass(frozen=True, slots=True)
class CaptionSource:
    """Where captions come from.

    listed: name of a picture -> its caption, in place of files beside the pictures. replacements: (text, what
    takes its place), applied in order.
    """

    extension: str = ".txt"
    default: str | None = None
    short: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    listed: Mapping[str, Caption] | None = None


def read_captions(
    folder: Path, names: Iterable[str], source: CaptionSource, findings: Findings
) -> dict[str, str]:
    """The caption of every picture, before its trigger word; unreadable ones become problems."""
    reader = _Reader(folder, list(names), source)
    captions: dict[str, str] = {}
    for name in reader.names:
        try:
            captions[name] = reader.caption(name)
        except DatasetError as error:
            findings.problems.extend(error.problems)
    reader.report(len(captions), findings)
    return _replaced(folder, captions, source.replacements, findings)


class _Reader:
    """Reads captions one by one, and remembers which pictures had none of their own."""

    def __init__(self, folder: Path, names: list[str], source: CaptionSource) -> None:
        self.folder = folder
        self.names = names
        self.source = source
        self.missing: list[str] = []
        self.empty: list[str] = []
        self.without_short: list[str] = []
        self.with_default: list[str] = []
        self._defaults: dict[Path, str] = {}
        called_so = [name for name in names if FOLDER_DEFAULT in name]
        self._own_default = {(folder / name).with_suffix("") for name in called_so}

    def caption(self, name: str) -> str:
        """The text for a picture. Raises DatasetError for a file that cannot be read."""
        source = self.source
        path = (self.folder / name).with_suffix(source.extension)
        found = read_caption(path) if source.listed is None else source.listed.get(name)
        text = "" if found is None else found.text
        if found is not None and source.short:
            text = found.short or found.text
            if text and not found.short:
                self.without_short.append(name)
        if text:
            return text
        default = self._folder_default(path.parent) or tidy(source.default or "")
        if default or source.default is not None:
            self.with_default.append(name)
        else:
            (self.missing if found is None else self.empty).append(name)
        return default

    def _folder_default(self, folder: Path) -> str:
        """What the file `default` of a folder says; '' without one, and where it is a picture's own."""
        if self.source.listed is not None:
            return ""
        if folder not in self._defaults:
            path = folder / f"{FOLDER_DEFAULT}{self.source.extension}"
            found = None if folder / FOLDER_DEFAULT in self._own_default else read_caption(path)
            short = found.short if found is not None and self.source.short else None
            self._defaults[folder] = "" if found is None else short or found.text
        return self._defaults[folder]

    def report(self, total: int, findings: Findings) -> None:
        """Tell what was not as it should be."""
        kind = self.source.extension if self.source.listed is None else "in the list"
        hint = self._hint(total)
        findings.odd(
            self.folder,
            f"{len(self.missing)} of {total} pictures have no caption ({kind}) "
            "and there is no default_caption",
            dict.fromkeys(self.missing, f"has no caption ({kind})"),
            hint=hint,
            code="data.no_caption",
        )
        findings.odd(
            self.folder,
            f"{len(self.empty)} of {total} pictures have an empty caption and there is no default_caption",
            dict.fromkeys(self.empty, "its caption is empty"),
            code="data.empty_caption",
        )
        findings.odd(
            self.folder,
            f"{len(self.without_short)} of {total} pictures have no caption_short, so their caption is used",
            dict.fromkeys(self.without_short, "has no caption_short"),
            code="data.no_short_caption",
        )
        if self.with_default:
            counted = f"{len(self.with_default)} of {total} pictures have no caption of their own"
            findings.notes.append(f"{self.folder}: {counted} and get the default one{self._hint(total)}")

    def _hint(self, total: int) -> str:
        """If no picture has a caption: where they may be."""
        without = [*self.missing, *self.with_default]
        if self.source.listed is not None or len(without) < total:
            return ""
        for suffix in CAPTION_SUFFIXES:
            if suffix != self.source.extension and any(
                (self.folder / name).with_suffix(suffix).exists() for name in without
            ):
                return f"; there are {suffix} files: set caption_ext: {suffix}"
        return ""


def _replaced(
    folder: Path, captions: dict[str, str], pairs: Sequence[tuple[str, str]], findings: Findings
) -> dict[str, str]:
    """The captions with each text of `pairs` replaced; one that is nowhere to be found is told."""
    for old, new in pairs:
        changed = {name: tidy(text.replace(old, new)) for name, text in captions.items() if old in text}
        if not changed:
            message = f"'{old}' (of '{old}|{new}') is in no caption of {folder}"
            findings.odd_setting(message, "replacements", code="data.replacement")
        captions = captions | changed
    return captions


def _split(name: str) -> tuple[str, str]:
    """A file's name without its suffix, and that; Path takes ten times as long for thousands."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix) if stem and not stem.endswith("/") and "/" not in suffix else (name, "")


def note_orphans(
    folder: Path, others: Iterable[str], pictures: Iterable[str], source: CaptionSource, findings: Findings
) -> None:
    """Tell of caption files without a picture of their name. others: the files that are no pictures."""
    files = [(name, *_split(name)) for name in others]
    captions = [(name, stem) for name, stem, suffix in files if suffix.lower() == source.extension.lower()]
    # A video is unread too, and told of by itself.
    known = {*CAPTION_SUFFIXES, source.extension.lower()}
    owners = {stem for _, stem, suffix in files if suffix.lower() not in known}
    owners.update(_split(name)[0] for name in pictures)
    orphans = sorted(
        name for name, stem in captions if stem not in owners and stem.rpartition("/")[2] != FOLDER_DEFAULT
    )
    told = f"{len(orphans)} caption files have no picture of their name"
    findings.odd(
        folder, told, dict.fromkeys(orphans, "has no picture of its name"), code="data.orphan_caption"
    )
