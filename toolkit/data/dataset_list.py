"""A dataset as a file that lists pictures with their captions, in place of a folder. Torch-free.

Three forms, all in UTF-8: `{"a.png": {"caption": "...", "caption_short": "..."}, ...}` (or the caption alone
in place of an object), a list of objects that name their picture, and the same objects one a line (.jsonl).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.data.captions import Caption, parse_caption, read_text
from toolkit.errors import DatasetError, Problem
from toolkit.paths import is_folder, resolve_path
from toolkit.text import is_unicode, printable

LIST_SUFFIXES = (".json", ".jsonl")
# Where an object of a list names its picture and its caption; the first of each that is there counts.
PATH_KEYS = ("path", "image_path", "image", "file_name", "filename", "file")
TEXT_KEYS = ("caption", "text")

Entry = tuple[int | None, Any, Any]  # (line, path, what is said about it)


def is_list(path: Path) -> bool:
    """Whether a dataset's path names a list of pictures rather than a folder."""
    return path.suffix.lower() in LIST_SUFFIXES and not is_folder(path)


def read_list(path: Path) -> dict[str, Caption]:
    """Name of each picture -> its caption, sorted by name.

    Names are relative to the list's folder, or absolute for pictures elsewhere: a relative path counts from
    that folder, else from the working folder. Raises DatasetError with everything that is wrong.
    """
    captions: dict[str, Caption] = {}
    problems: list[Problem] = []

    def wrong(message: str, line: int | None = None) -> None:
        problems.append(Problem("data.list", message, file=str(path), line=line))

    try:
        for line, name, content in _entries(path):
            try:
                caption = _caption(name, content)
            except ValueError as error:
                wrong(str(error), line)
                continue
            place = _place(path.parent, name)
            if place in captions:
                wrong(f"'{name}' is listed twice", line)
            captions[place] = caption
    except FileNotFoundError:
        wrong("no such file")
    except ValueError as error:
        wrong(f"not valid JSON: {error}")
    if not captions and not problems:
        wrong("lists no pictures")
    if problems:
        raise DatasetError(problems)
    return dict(sorted(captions.items()))


def _caption(name: Any, content: Any) -> Caption:
    """What is said about a picture. Raises ValueError for what is no name or no caption."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"an entry names no picture (under {' or '.join(PATH_KEYS)})")
    if not is_unicode(name):
        raise ValueError(f"half a character in the name '{printable(name)}'")
    try:
        return parse_caption(content)
    except ValueError as error:
        raise ValueError(f"'{name}': {error}") from error


def _entries(path: Path) -> Iterator[Entry]:
    """Every entry of a list. Raises ValueError for what is no JSON or no list."""
    text = read_text(path)
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    yield number, *_named(_parsed(line))
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
        return
    content = _parsed(text)
    if isinstance(content, dict):
        yield from ((None, name, said) for name, said in content.items())
    elif isinstance(content, list):
        yield from ((None, *_named(entry)) for entry in content)
    else:
        raise ValueError("expected an object of pictures or a list")


def _parsed(text: str) -> Any:
    """JSON in which no object has a key twice: the first of two captions would vanish unseen."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"'{key}' is there twice")
            found[key] = value
        return found

    return json.loads(text, object_pairs_hook=once)


def _named(entry: Any) -> tuple[Any, Any]:
    """(path, what is said) of an object that names its picture."""
    if not isinstance(entry, dict):
        return None, entry
    name = next((entry[key] for key in PATH_KEYS if key in entry), None)
    text = next((entry[key] for key in TEXT_KEYS if key in entry), None)
    return name, {"caption": text, "caption_short": entry.get("caption_short")}


def _place(folder: Path, name: str) -> str:
    """A listed path as a name in the folder, or absolute where it lies elsewhere."""
    path = Path(name).expanduser()
    if not path.is_absolute() and not (folder / path).exists() and resolve_path(path).exists():
        path = resolve_path(path).absolute()
    if path.is_absolute() and path.is_relative_to(folder.absolute()):
        path = path.relative_to(folder.absolute())
    return path.as_posix()
