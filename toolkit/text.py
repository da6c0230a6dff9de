"""Numbers and tables as a person reads them. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def count(number: int, what: str, plural: str = "s") -> str:
    """1 picture, 2 pictures."""
    return f"{number} {what}{'' if number == 1 else plural}"


def size(num_bytes: float) -> str:
    """Bytes in the unit that leaves few digits: 850 kB, 4.3 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            value = num_bytes / factor
            return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{num_bytes:.0f} bytes"


def percent(share: float) -> str:
    """0.031: `+3.1 %`."""
    return f"{share:+.1%}".replace("%", " %")


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as aligned lines: the first column to the left, numbers to the right."""
    if not rows:
        return []
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index in (0, len(widths) - 1) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: names of files in other encodings cannot, nor half an emoji."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unwritable(values: Mapping[str, object]) -> Iterator[str]:
    """The keys of values, or lists of them, that no file in UTF-8 can hold."""
    for key, value in values.items():
        texts = value if isinstance(value, list) else [value]
        if not all(is_unicode(str(text)) for text in texts):
            yield key


def printable(text: str) -> str:
    """The text, with what cannot be written spelled out."""
    return text.encode(errors="backslashreplace").decode()


def one_line(text: str) -> str:
    """The text with line breaks and other control characters spelled out, as programs write them."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)
