"""What datasets and the files in them may be called. Torch-free.

A name comes from a stranger: it is made safe for every system, and two different names stay different.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

PICTURES = (".png", ".jpg", ".jpeg", ".webp")  # what the trainer reads
CAPTIONS = (".txt", ".caption", ".json")  # the first one there is counts
ARCHIVES = (".zip",)
LONGEST_STEM = 100  # letters; with a suffix and a number it stays below every system's limit

_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
# Letters, marks and digits of every script, and a few signs; everything else becomes an underscore.
_KEPT_CATEGORIES = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Nd"})
_KEPT_SIGNS = frozenset(" ._-()+=,@'")


def bad_dataset_name(name: str) -> str | None:
    """Why a text cannot name a dataset, or None if it can."""
    if not _DATASET.fullmatch(name) or name.endswith("."):
        return (
            "must be 1 to 100 of A-Z, a-z, 0-9, '.', '-' and '_', "
            "begin with a letter or digit and not end with a dot"
        )
    if _RESERVED.fullmatch(name):
        return "is reserved by the system"
    return None


def suffix_of(name: str) -> str:
    """The last suffix of a file name, in small letters: '' or such as '.png'."""
    return PurePosixPath(last_part(name)).suffix.lower()


def last_part(name: str) -> str:
    """The part of a sent name behind every separator, of whichever system.

    >>> last_part("C:\\\\pictures\\\\cat.png")
    'cat.png'
    """
    return re.split(r"[/\\]", name)[-1]


def clean_stem(name: str) -> str:
    """The stem that a sent file name gets: visible, without signs that some system gives a meaning.

    >>> clean_stem("../../a<b>.php.png")
    'a_b_.php'
    """
    base = unicodedata.normalize("NFC", last_part(name))
    stem = base[: len(base) - len(PurePosixPath(base).suffix)] if PurePosixPath(base).suffix else base
    kept = "".join(_kept(letter) for letter in stem)
    kept = re.sub(r"\s+", " ", kept).strip(" .")[:LONGEST_STEM].strip(" .")
    while len(kept.encode()) > 2 * LONGEST_STEM:
        kept = kept[:-1].strip(" .")
    if not kept or not any(letter.isalnum() for letter in kept):
        kept = "picture"
    return f"_{kept}" if _RESERVED.fullmatch(kept) else kept


def _kept(letter: str) -> str:
    if letter in _KEPT_SIGNS or unicodedata.category(letter) in _KEPT_CATEGORIES:
        return letter
    return " " if letter.isspace() else "_"


def free_stem(stem: str, taken: Iterable[str]) -> str:
    """The stem, or the stem with a number if it is taken; systems differ on small letters, so they are equal.

    >>> free_stem("Cat", {"cat", "cat-2"})
    'Cat-3'
    """
    used = taken if isinstance(taken, set) else set(taken)
    number, found = 1, stem
    while folded(found) in used:
        number += 1
        found = f"{stem}-{number}"
    return found


def folded(stem: str) -> str:
    """A stem as names are compared."""
    return unicodedata.normalize("NFC", stem).casefold()
