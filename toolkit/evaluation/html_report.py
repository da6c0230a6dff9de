"""A report as one page to look at: no other file, no network, readable on a phone. Torch-free.

Images come with the worst caption first. Plots are drawn as SVG by the template from numbers made here.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from toolkit.data.dataset_list import is_list
from toolkit.data.image_files import open_rgb
from toolkit.errors import DatasetError
from toolkit.evaluation.flags import FLAGS, HINTS
from toolkit.evaluation.report import DatasetReport, ImageReport, Report
from toolkit.evaluation.thumbnails import data_url
from toolkit.paths import resolve_path

THUMBNAIL = 112  # pixels of the longer side
TEMPLATES = Path(__file__).parent / "templates"
NUM_BARS = 24
MAX_SHOWN = 1000  # images on the page; a browser bears no ten thousand pictures
MAX_EDITS = 8  # of an image, the best
WIDTH, HEIGHT = 560.0, 180.0  # of a plot, in its own units


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a histogram: place and size in the plot's units, and what it counts."""

    x: float
    y: float
    width: float
    height: float
    label: str
    below_zero: bool


@dataclass(frozen=True, slots=True)
class Histogram:
    """Gains of all images: bars, where zero is, and the ends of the scale."""

    bars: list[Bar]
    zero: float
    low: str
    high: str


@dataclass(frozen=True, slots=True)
class Curves:
    """Losses over the noise level: points of each line as SVG takes them, and the top of the scale."""

    with_caption: str
    with_blank: str
    top: str


@dataclass(frozen=True, slots=True)
class Whisker:
    """An image's gain with its interval on the scale that all images share, in percent of its width."""

    left: float
    width: float
    middle: float
    zero: float


def write_html(report: Report, path: Path) -> None:
    """Write the page beside a report. Raises RunError if it cannot be written."""
    from toolkit.runs import atomic

    atomic.write_text(path, render(report))


def render(report: Report) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"share": share, "signed": signed}
    gains, compared, worst = _gone_through(report)
    scale = Scale.of([gain for each in gains.values() for gain in each])
    return environment.get_template("report.html").render(
        report=report,
        images=[_shown(report.images[place], scale) for place in worst],
        compared=compared,
        num_left_out=len(report.images) - len(worst),
        plots=[(dataset, histogram(gains[dataset.path]), curves(dataset)) for dataset in report.datasets],
        flags=FLAGS | HINTS,
        width=WIDTH,
        height=HEIGHT,
    )


def _gone_through(report: Report) -> tuple[dict[str, array[float]], Counter[str], list[int]]:
    """What a look at each image tells.

    By the data sets' paths their images' gains, and the most captions that one was compared under; the places
    of the images shown, the worst caption first.
    """
    gains: dict[str, array[float]] = defaultdict(lambda: array("d"))
    compared = Counter[str]()

    def keys() -> Iterator[tuple[bool, bool, float, int]]:
        for place, image in enumerate(report.images):
            if image.log_ratio is not None:
                gains[image.dataset].append(image.log_ratio.mean)
            compared[image.dataset] = max(compared[image.dataset], image.num_others + 1)
            yield *badness(image), place

    worst = heapq.nsmallest(MAX_SHOWN, keys())
    return gains, compared, [place for *_, place in worst]


def _shown(image: ImageReport, scale: Scale) -> tuple[ImageReport, str | None, Whisker | None]:
    # All edits of a thousand images would be half a gigabyte.
    shown = image.model_copy(update={"edits": image.edits[:MAX_EDITS]})
    return shown, thumbnail(image), scale.whisker(image)


def badness(image: ImageReport) -> tuple[bool, bool, float]:
    """Sorts the worst caption first: flagged, then with a better word known, then by how little it helps."""
    gain = image.log_ratio.mean if image.log_ratio is not None else -math.inf
    return not image.flagged, image.suggestion is None, gain


def share(log_ratio: float) -> str:
    """A log ratio of losses as the share by which the second is below the first: 0.1 -> "-9.5 %".

    From ten times on as a multiple, which of few draws an interval may well end at.
    """
    change = math.expm1(min(-log_ratio, 700.0))
    if change >= 9:
        times = change + 1
        return (
            f"\N{MULTIPLICATION SIGN}{times:.0f}"
            if times < 10_000
            else "\N{MULTIPLICATION SIGN}10000 or more"
        )
    return f"{change:+.1%}".replace("%", " %").replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """A number with its sign, three digits."""
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}")


def thumbnail(image: ImageReport) -> str | None:
    """A small JPEG as a data URL, or None if the picture is gone."""
    try:
        place = resolve_path(image.dataset)
        picture = open_rgb((place.parent if is_list(place) else place) / image.path)
    except DatasetError:
        return None
    return data_url(picture, THUMBNAIL)


@dataclass(frozen=True, slots=True)
class Scale:
    """The range of log ratios that all images are drawn on; it always holds zero."""

    low: float
    high: float

    @classmethod
    def of(cls, gains: Sequence[float]) -> Scale:
        """Wide enough for all of them, with a little room."""
        low, high = min([0.0, *gains]), max([0.0, *gains])
        room = 0.08 * (high - low) or 0.01
        return cls(low - room, high + room)

    def place(self, value: float) -> float:
        """A log ratio in percent of the scale, kept inside."""
        return round(100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 2)

    def whisker(self, image: ImageReport) -> Whisker | None:
        """How an image's gain is drawn, or None if nothing was measured."""
        gain = image.log_ratio
        if gain is None:
            return None
        low = self.place(gain.mean if gain.low is None else gain.low)
        high = self.place(gain.mean if gain.high is None else gain.high)
        return Whisker(low, max(0.5, high - low), self.place(gain.mean), self.place(0.0))


def histogram(gains: Sequence[float]) -> Histogram | None:
    """How the mean log ratios of images spread, or None if there are none."""
    if not gains:
        return None
    scale = Scale.of(gains)
    step = (scale.high - scale.low) / NUM_BARS
    counts = [0] * NUM_BARS
    for gain in gains:
        counts[min(NUM_BARS - 1, int((gain - scale.low) / step))] += 1
    width, tallest = WIDTH / NUM_BARS, max(counts)
    bars = [
        Bar(
            x=round(i * width + 1, 2),
            y=round(HEIGHT * (1 - count / tallest), 2),
            width=round(width - 2, 2),
            height=round(HEIGHT * count / tallest, 2),
            label=f"{count} image{'' if count == 1 else 's'} around {share(scale.low + (i + 0.5) * step)}",
            below_zero=scale.low + (i + 0.5) * step < 0,
        )
        for i, count in enumerate(counts)
        if count
    ]
    zero = round(WIDTH * scale.place(0.0) / 100, 2)
    return Histogram(bars, zero, share(scale.low), share(scale.high))


def curves(dataset: DatasetReport) -> Curves | None:
    """Mean losses over the noise level, or None if there are fewer than two parts of the schedule."""
    points = dataset.curve
    if len(points) < 2:
        return None
    top = max(max(point.loss_with_caption, point.loss_with_blank or 0.0) for point in points) or 1.0

    def line(values: Sequence[float | None]) -> str:
        return " ".join(
            f"{WIDTH * point.t:.1f},{HEIGHT * (1 - value / top):.1f}"
            for point, value in zip(points, values, strict=True)
            if value is not None
        )

    return Curves(
        line([point.loss_with_caption for point in points]),
        line([point.loss_with_blank for point in points]),
        f"{top:.3g}",
    )
