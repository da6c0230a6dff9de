"""What is said about a picture: read from its caption file, with the trigger word in place. Torch-free."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import DatasetError, Problem
from toolkit.text import is_unicode, printable

PLACEHOLDERS = ("[trigger]", "[name]")


@dataclass(frozen=True, slots=True)
class Caption:
    """What one source says about a picture; short is None where it has no short caption."""

    text: str
    short: str | None = None


def normalize_extension(extension: str) -> str:
    """'txt' or '.txt' to '.txt'."""
    return extension if extension.startswith(".") else f".{extension}"


def is_extension(text: str) -> bool:
    """Whether a text, with or without its dot, can end the name of a file beside a picture."""
    return re.fullmatch(r"\.?\w[\w.-]*", text) is not None


def tidy(text: str) -> str:
    """One line: line breaks and runs of blanks become single blanks."""
    return " ".join(text.split())


def _unreadable(path: Path, reason: str, remedy: str | None = None) -> DatasetError:
    return DatasetError(Problem("data.caption_file", reason, file=str(path), remedy=remedy))


def parse_caption(content: Any) -> Caption:
    """A caption from JSON: the text itself, or an object with `caption` and `caption_short`, both optional.

    Raises ValueError for anything else.
    """
    if isinstance(content, str):
        content = {"caption": content}
    if not isinstance(content, dict):
        raise ValueError('expected text, or an object with the text under "caption"')
    texts = {key: content.get(key) for key in ("caption", "caption_short")}
    for key, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise ValueError(f'expected text under "{key}"')
        if text is not None and not is_unicode(text):
            raise ValueError(f'half a character under "{key}": "{printable(tidy(text))}"')
    short = texts["caption_short"]
    return Caption(tidy(texts["caption"] or ""), None if short is None else tidy(short))


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 (a byte order mark is fine).

    Raises DatasetError if it cannot be read or has another encoding, FileNotFoundError without the file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        found = "is UTF-16" if utf16 else f"is not UTF-8 (byte {error.start + 1})"
        raise _unreadable(path, f"the caption {found}", "save it as UTF-8") from error
    if "\0" in text:
        raise _unreadable(path, "the caption holds NUL characters", "save it as UTF-8 text")
    return text


def read_caption(path: Path) -> Caption | None:
    """What a caption file says, tidied; None without such a file. `.json` may hold a short caption too.

    Raises DatasetError if the file cannot be read or has another encoding or form.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        return None
    if path.suffix.lower() != ".json" or not text.strip():
        return Caption(tidy(text))
    try:
        content = json.loads(text)
    except ValueError as error:
        raise _unreadable(path, f"not valid JSON: {error}") from error
    try:
        if not is_unicode(json.dumps(content, ensure_ascii=False)):
            raise ValueError("holds half a character, such as one half of an emoji")
        return parse_caption(content)
    except ValueError as error:
        raise _unreadable(path, str(error)) from error


def _says(caption: str, trigger: str) -> bool:
    """Whether the trigger stands in the caption as a word: 'sks' is not in 'asks'."""
    return re.search(rf"(?<![A-Za-z0-9_]){re.escape(trigger)}(?![A-Za-z0-9_])", caption) is not None


def insert_trigger(caption: str, trigger: str | None, *, prepend: bool = True) -> str:
    """Put the trigger for [trigger] and [name], and in front if the caption lacks it (unless not prepend)."""
    for placeholder in PLACEHOLDERS:
        caption = caption.replace(placeholder, trigger or "")
    caption = tidy(caption)
    if trigger and prepend and not _says(caption, trigger):
        caption = f"{trigger} {caption}".strip()
    return caption
