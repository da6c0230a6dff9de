"""How numbers and times are written on pages. Each is a filter of the templates."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

LAST_TIME = 253_402_300_799.0  # the last second of the year 9999


def duration(seconds: float | None) -> str:
    """12 s, 3 min 5 s, 2 h 10 min, 3 d 4 h; an en dash for None.

    >>> duration(7800)
    '2 h 10 min'
    """
    if seconds is None:
        return "–"
    whole = round(max(0.0, seconds))
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for index, (unit, size) in enumerate(units):
        if whole >= size or unit == "s":
            count, rest = divmod(whole, size)
            text = f"{count} {unit}"
            if rest and index + 1 < len(units):
                smaller, small = units[index + 1]
                text += f" {rest // small} {smaller}" if rest // small else ""
            return text
    raise AssertionError


def size(count: int | None) -> str:
    """12 B, 3.4 kB, 1.2 GB; an en dash for None."""
    if count is None:
        return "–"
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def speed(steps_per_second: float | None) -> str:
    """2.5 it/s, or 3.2 s/it where a step takes longer than a second."""
    if not steps_per_second:
        return "–"
    return f"{steps_per_second:.2f} it/s" if steps_per_second >= 1 else f"{1 / steps_per_second:.2f} s/it"


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits; an en dash for None."""
    return "–" if value is None else f"{value:.{digits}g}"


def calendar_time(seconds: float) -> datetime:
    """The time in UTC; what no calendar has, and a file's time may be anything, as its beginning or end."""
    return datetime.fromtimestamp(min(max(seconds, 0.0), LAST_TIME), UTC)


def moment(seconds: float | None) -> str:
    """2026-01-31 12:00:00 UTC; an en dash for None."""
    if seconds is None:
        return "–"
    return calendar_time(seconds).strftime("%Y-%m-%d %H:%M:%S UTC")


FILTERS: dict[str, Callable[..., Any]] = {
    "duration": duration, "size": size, "speed": speed, "number": number, "moment": moment,
}  # fmt: skip
