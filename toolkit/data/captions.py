"""What is said about a picture: read from its caption file, with the trigger word in place. Torch-free."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from pathlib import Path

from toolkit.data.items import MediaItem
from toolkit.errors import DatasetError, Problem

PLACEHOLDERS = ("[trigger]", "[name]")


def normalize_extension(extension: str) -> str:
    """'txt' or '.txt' to '.txt'."""
    return extension if extension.startswith(".") else f".{extension}"


def tidy(text: str) -> str:
    """One line: line breaks and runs of blanks become single blanks."""
    return " ".join(text.split())


def _unreadable(path: Path, reason: str, remedy: str | None = None) -> DatasetError:
    return DatasetError(Problem("data.caption_file", reason, file=str(path), remedy=remedy))


def _from_json(path: Path, text: str) -> str:
    """The `caption` of a JSON caption file."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise _unreadable(path, f"not valid JSON: {error}") from error
    caption = content.get("caption", "") if isinstance(content, dict) else content
    if not isinstance(caption, str):
        raise _unreadable(path, 'expected text, or an object with the text under "caption"')
    return caption


def read_caption(path: Path) -> str | None:
    """The text of a caption file in UTF-8 (a byte order mark is fine), tidied; None without such a file.

    Raises DatasetError if the file cannot be read or has another encoding.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
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
    return tidy(_from_json(path, text) if path.suffix.lower() == ".json" and text.strip() else text)


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


def final_caption(item: MediaItem, rng: random.Random) -> str:
    """The caption of one draw: the item's own, or '' (trigger included) with its dropout rate."""
    return "" if rng.random() < item.caption_dropout_rate else item.caption


def possible_captions(items: Iterable[MediaItem]) -> list[str]:
    """Every text that `final_caption` can give for these items, each once, in order: what to encode ahead."""
    texts: dict[str, None] = {}
    for item in items:
        if item.caption_dropout_rate < 1:
            texts[item.caption] = None
        if item.caption_dropout_rate > 0:
            texts[""] = None
    return list(texts)
