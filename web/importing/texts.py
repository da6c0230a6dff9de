"""Texts of others, made fit to be shown on one line. Torch-free."""

from __future__ import annotations

from typing import Any

LONGEST = 1000


def one_line(value: Any) -> str:
    """A text without control characters and halves of letters, at most LONGEST letters."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = "" if value is None else str(value)[: LONGEST * 2]
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:LONGEST]


def is_text(name: str) -> bool:
    """Whether a file's name is text: on Linux it may be any bytes."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
