"""Plots as numbers that a template draws as SVG. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]

WIDTH, HEIGHT = 640.0, 220.0  # of a plot, in its own units
MOST_POINTS = 600  # of a line; more are thinned to the least and the largest of each stretch
NUM_TICKS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """A curve: its name, its points by rising x, the style of the page that draws it, and a band if any."""

    name: str
    points: Sequence[Point]
    style: str
    low: Sequence[Point] = ()
    high: Sequence[Point] = ()


@dataclass(frozen=True, slots=True)
class Curve:
    """A line as SVG takes it: points, and the outline of its band (empty without one)."""

    name: str
    style: str
    points: str
    band: str
    last: Point


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves in a frame; ticks and marks are (place, text) along their axis."""

    width: float
    height: float
    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[tuple[float, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar: place and size, the series it belongs to, and what it says."""

    x: float
    y: float
    width: float
    height: float
    series: int
    text: str


@dataclass(frozen=True, slots=True)
class Bars:
    """Groups of bars side by side: labels stand at (middle, text)."""

    width: float
    height: float
    bars: list[Bar]
    labels: list[tuple[float, str]]
    names: list[str]
    top: str


def plot(
    lines: Sequence[Line], *, unit: str = "", floor: float | None = None, height: float = HEIGHT,
    marks: Sequence[tuple[float, str]] = (),
) -> Plot:  # fmt: skip
    """Lines in one frame. floor: a value that the frame reaches down to at least."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for part in (line.points, line.low, line.high) for _, y in part]
    ys = [y for y in ys if math.isfinite(y)] + ([] if floor is None else [floor])
    low, high = _range(min(ys), max(ys))
    left, right = min(xs), max(max(xs), min(xs) + 1)

    def place(point: Point) -> Point:
        x, y = point
        inside = min(high, max(low, y))
        share = (x - left) / (right - left)
        return round(WIDTH * share, 1), round(height * (high - inside) / (high - low), 1)

    def path(points: Sequence[Point]) -> str:
        return " ".join(f"{x},{y}" for x, y in map(place, points) if math.isfinite(y))

    curves = [
        Curve(line.name, line.style, path(thinned(line.points)),
              path([*line.low, *reversed(line.high)]) if line.low else "", place(line.points[-1]))
        for line in lines
    ]  # fmt: skip
    return Plot(
        WIDTH, height, curves,
        [(place((x, low))[0], f"{x:g}") for x in _ticks(left, right)],
        [(place((left, y))[1], f"{y:g}{unit}") for y in _ticks(low, high)],
        [(place((x, low))[0], text) for x, text in marks],
    )  # fmt: skip


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most about MOST_POINTS of the points: of each stretch the least and the largest, in their order."""
    finite = [point for point in points if math.isfinite(point[1])]
    if len(finite) <= MOST_POINTS:
        return finite
    size = math.ceil(2 * len(finite) / MOST_POINTS)
    kept: list[Point] = []
    for start in range(0, len(finite), size):
        stretch = finite[start : start + size]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def bars(labels: Sequence[str], series: Sequence[Sequence[float | None]], names: Sequence[str]) -> Bars:
    """Bars of several series side by side under each label; None leaves a gap."""
    top = max((value for values in series for value in values if value is not None), default=0.0) or 1.0
    slot = WIDTH / len(labels)
    width = 0.8 * slot / len(series)
    found = [
        Bar(round(slot * (place + 0.1) + width * number, 1), round(HEIGHT * (1 - value / top), 1),
            round(width, 1), round(HEIGHT * value / top, 1), number, f"{names[number]}: {value:.4g}")
        for number, values in enumerate(series)
        for place, value in enumerate(values)
        if value is not None
    ]  # fmt: skip
    middles = [(round(slot * (place + 0.5), 1), label) for place, label in enumerate(labels)]
    return Bars(WIDTH, HEIGHT, found, middles, list(names), f"{top:.3g}")


def _range(low: float, high: float) -> tuple[float, float]:
    """A little wider than what it must hold, and never empty."""
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (low - room if low != 0 else low), high + room


def _ticks(low: float, high: float) -> list[float]:
    """A few round numbers inside a range."""
    rough = (high - low) / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(step * number, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]
