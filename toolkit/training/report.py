"""Two pictures at the end of a run: previews as prompts × steps, and the loss over the steps. Torch-free."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import Problem, RunError
from toolkit.runs import atomic
from toolkit.runs.images import read_recipe
from toolkit.runs.layout import RunFolder
from toolkit.runs.metrics import live_rows

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

Row = dict[str, Any]

_BACKGROUND, _INK, _FAINT, _EMPTY, _LINE = "#ffffff", "#1f2328", "#6e7781", "#f3f4f6", "#d8dee4"
_GAP, _MARGIN, _HEADER = 8, 24, 44
_LABEL_WIDTH = 220
_CELL_SMALL, _CELL_LARGE = 128, 256  # shown edge of tiny previews, and the largest of any
_TITLE_SIZE, _TEXT_SIZE, _STEP_SIZE = 22, 15, 15


@dataclass(frozen=True, slots=True)
class _Grid:
    """Which previews stand where: rows are prompt indices, columns are steps."""

    rows: list[int]
    columns: list[int]
    cells: dict[tuple[int, int], Path]  # (prompt index, step)


def contact_sheet(
    run: RunFolder, path: Path, prompts: Sequence[str] | None = None, max_columns: int = 12
) -> Path:
    """Write a PNG of all previews: a row per prompt, a column per step. Raises RunError if there are none."""
    grid = _grid(run, max_columns)
    places = {
        (grid.rows.index(index), grid.columns.index(step)): cell for (index, step), cell in grid.cells.items()
    }
    labels = [_label(grid, index, prompts) for index in grid.rows]
    return write_sheet(path, run.name, labels, [f"step {step}" for step in grid.columns], places)


def slider_sheet(run: RunFolder, path: Path, prompts: Sequence[str], multipliers: Sequence[float]) -> Path:
    """Write a PNG of the newest previews of a slider: a row per prompt, a column per strength of the network.

    The previews are numbered prompt by prompt, one for each strength. Raises RunError if there are none.
    """
    by_step = run.samples_by_step()
    if not by_step:
        raise _no_samples(run)
    step = max(by_step)
    places = {divmod(index, len(multipliers)): cell for index, cell in by_step[step].items()}
    columns = [f"{multiplier:+g}" if multiplier else "0" for multiplier in multipliers]
    return write_sheet(path, f"{run.name}, step {step}", list(prompts), columns, places)


def write_sheet(
    path: Path, title: str, rows: list[str], columns: list[str], cells: dict[tuple[int, int], Path]
) -> Path:
    """A grid of pictures by (row, column) with a label for each row and column."""
    from PIL import Image, ImageDraw

    size = _cell_size(list(cells.values()))
    width = 2 * _MARGIN + _LABEL_WIDTH + len(columns) * (size[0] + _GAP)
    top = _MARGIN + _TITLE_SIZE + _HEADER
    height = top + len(rows) * (size[1] + _GAP) + _MARGIN - _GAP
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, _INK, _font(_TITLE_SIZE, bold=True), anchor="lt")
    for column, text in enumerate(columns):
        left = _MARGIN + _LABEL_WIDTH + column * (size[0] + _GAP)
        draw.text((left + size[0] // 2, top - 10), text, _FAINT, _font(_STEP_SIZE), anchor="ms")
        for row in range(len(rows)):
            _paste(sheet, draw, (left, top + row * (size[1] + _GAP)), cells.get((row, column)), size)
    for row, label in enumerate(rows):
        middle = top + row * (size[1] + _GAP) + size[1] // 2
        _write_wrapped(draw, (_MARGIN, middle), label, size[1])
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    atomic.write_bytes(path, buffer.getvalue())
    return path


def thin(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of the steps, evenly spread, the first and the last among them.

    >>> thin([0, 100, 200, 300, 400], 3)
    [0, 200, 400]
    """
    ordered = sorted(set(steps))
    if len(ordered) <= most:
        return ordered
    if most < 2:
        return ordered[-1:]
    last = len(ordered) - 1
    # An even stride reads better than a few columns more: 0, 100, 200 … rather than 0, 100, 200, 250, 350 …
    even = [count for count in range(most, max(2, 2 * most // 3) - 1, -1) if last % (count - 1) == 0]
    count = even[0] if even else most
    return [ordered[round(place * last / (count - 1))] for place in range(count)]


def _grid(run: RunFolder, max_columns: int) -> _Grid:
    by_step = run.samples_by_step()
    if not by_step:
        raise _no_samples(run)
    columns = thin(list(by_step), max_columns)
    cells = {(index, step): path for step in columns for index, path in by_step[step].items()}
    rows = sorted({index for index, _ in cells})
    return _Grid(rows, columns, cells)


def _no_samples(run: RunFolder) -> RunError:
    return RunError(Problem("run.no_samples", "there are no previews to show", file=str(run.samples)))


def _cell_size(paths: list[Path]) -> tuple[int, int]:
    """Width and height of a cell that holds every picture: tiny ones enlarged, large ones reduced."""
    sizes = [size for size in map(_picture_size, paths) if size is not None]
    if not sizes:
        return _CELL_SMALL, _CELL_SMALL
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    scale = _scale(max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _scale(edge: int) -> float:
    """The factor at which a picture of this longer edge is shown: whole numbers up, any number down."""
    if edge >= _CELL_LARGE:
        return _CELL_LARGE / edge
    return max(1, math.ceil(_CELL_SMALL / edge))


def _picture_size(path: Path) -> tuple[int, int] | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError):
        return None  # shown as a gap


def _paste(
    sheet: Image, draw: ImageDraw, corner: tuple[int, int], path: Path | None, size: tuple[int, int]
) -> None:
    image = _load(path, size) if path is not None else None
    if image is None:
        right, bottom = corner[0] + size[0] - 1, corner[1] + size[1] - 1
        draw.rectangle((*corner, right, bottom), fill=_EMPTY)
        middle = (corner[0] + size[0] // 2, corner[1] + size[1] // 2)
        draw.text(middle, "–", _FAINT, _font(_TEXT_SIZE), anchor="mm")
        return
    left, top = corner[0] + (size[0] - image.width) // 2, corner[1] + (size[1] - image.height) // 2
    sheet.paste(image, (left, top))
    # A hairline, or a picture on white would have no edge.
    draw.rectangle((left, top, left + image.width - 1, top + image.height - 1), outline=_LINE)


def _load(path: Path, size: tuple[int, int]) -> Image | None:
    from PIL import Image as pil
    from PIL import UnidentifiedImageError

    try:
        with pil.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    scale = min(size[0] / image.width, size[1] / image.height)
    shown = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    method = pil.Resampling.BICUBIC if scale > 1 else pil.Resampling.LANCZOS
    return image.resize(shown, method)


def _label(grid: _Grid, index: int, prompts: Sequence[str] | None) -> str:
    """The prompt of a row: as given, else as the newest preview's recipe tells it."""
    if prompts is not None and index < len(prompts):
        return prompts[index]
    for step in reversed(grid.columns):
        path = grid.cells.get((index, step))
        recipe = read_recipe(path) if path is not None and _picture_size(path) else None
        if recipe and recipe.get("prompt"):
            return str(recipe["prompt"])
    return f"prompt {index}"


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows Latin, Greek and Cyrillic."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _write_wrapped(draw: ImageDraw, left_middle: tuple[int, int], text: str, height: int) -> None:
    """Write `text` in the label column, centred on a row; what does not fit ends in an ellipsis."""
    font = _font(_TEXT_SIZE)
    line_height = round(_TEXT_SIZE * 1.35)
    lines = wrap(text, _LABEL_WIDTH - 16, lambda line: draw.textlength(line, font))
    most = max(1, height // line_height)
    if len(lines) > most:
        lines = lines[:most]
        lines[-1] = lines[-1].rstrip(" ,.") + " …"
    y = left_middle[1] - (len(lines) - 1) * line_height // 2
    for line in lines:
        draw.text((left_middle[0], y), line, _INK, font, anchor="lm")
        y += line_height


def wrap(text: str, width: float, measure: Any) -> list[str]:
    """Lines of `text` of which `measure(line) <= width`; a word longer than a line is cut."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        candidate = f"{line} {word}".strip()
        if measure(candidate) <= width:
            line = candidate
            continue
        if line:
            lines.append(line)
        while measure(word) > width:
            cut = next(end for end in range(len(word) - 1, 0, -1) if end == 1 or measure(word[:end]) <= width)
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    return [*lines, line] if line else lines or [""]


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Exponential mean without the pull towards zero of its first values (as in Adam, arXiv:1412.6980)."""
    mean, total = 0.0, 0.0
    result = []
    for value in values:
        mean = weight * mean + (1 - weight) * value
        total = weight * total + (1 - weight)
        result.append(mean / total)
    return result


def loss_plot(rows: Sequence[Row], path: Path, title: str) -> Path:
    """Write a PNG of the rows of metrics.jsonl: loss as it came and smoothed, learning rate below.

    Raises RunError if no row holds a loss.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    live = live_rows(rows)
    points = [(row["step"], row["loss"]) for row in live if _is_number(row.get("loss"))]
    if not points:
        raise RunError(Problem("run.no_metrics", "there is no loss to draw", file=str(path)))
    rates = [(row["step"], row["lr"]) for row in live if _is_number(row.get("lr"))]
    figure = Figure(figsize=(10, 5.6), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    loss_axes, rate_axes = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    _draw_loss(loss_axes, points, title)
    _draw_attempts(loss_axes, live)
    _draw_rate(rate_axes, rates)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    atomic.write_bytes(path, buffer.getvalue())
    return path


def _draw_loss(axes: Any, points: list[tuple[int, float]], title: str) -> None:
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    # A window of about a twentieth of the run: wide enough to see a trend, and never wider than 100 rows.
    weight = 1 - 1 / min(100, max(1, len(losses) / 20))
    smoothed = smooth(losses, weight)
    axes.plot(steps, losses, color="#4c8dd6", alpha=0.3, linewidth=0.8, label="each step")
    axes.plot(steps, smoothed, color="#0b4f9e", linewidth=2.0, label="smoothed")
    if len(points) == 1:
        axes.plot(steps, losses, "o", color="#0b4f9e")
    if min(losses) > 0 and max(smoothed) / min(smoothed) > 20:
        axes.set_yscale("log")
    else:
        _limit_spikes(axes, losses)
    axes.set_title(title, loc="left", fontweight="bold", fontsize=12)
    axes.set_title(f"smoothed, at the end: {smoothed[-1]:.4g}", loc="right", fontsize=10, color=_FAINT)
    axes.set_ylabel("loss")
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    _tidy(axes)


def _limit_spikes(axes: Any, losses: list[float]) -> None:
    """Keep a few wild steps from flattening the rest of the curve."""
    ordered = sorted(losses)
    high = ordered[min(len(ordered) - 1, int(0.995 * len(ordered)))]
    low = min(0.0, ordered[0])
    if high > low:
        axes.set_ylim(low, low + 1.15 * (high - low))


def _draw_attempts(axes: Any, rows: list[Row]) -> None:
    for before, after in zip(rows, rows[1:], strict=False):
        if before.get("attempt") != after.get("attempt"):
            axes.axvline(after["step"], color=_FAINT, linestyle=(0, (4, 3)), linewidth=1)
            axes.annotate(
                f"attempt {after.get('attempt')}", (after["step"], 1), (4, -4), fontsize=8, color=_FAINT,
                xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
            )  # fmt: skip


def _draw_rate(axes: Any, rates: list[tuple[int, float]]) -> None:
    if rates:
        steps, values = zip(*rates, strict=True)
        axes.plot(steps, values, color="#c2571a", linewidth=1.5)
        axes.set_ylim(0, 1.15 * max(values) or 1)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    axes.set_ylabel("lr")
    axes.set_xlabel("step")
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.tick_params(labelsize=9, color=_FAINT)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
