"""A report as a page shows it: figures in words, curves as SVG, pictures with the worst first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.paths import is_folder
from web.evaluations.reports import METRICS, Metric, dataset_folder, messages
from web.services import Services

PAGE = 50
WIDTH, HEIGHT = 560.0, 180.0


@dataclass(frozen=True, slots=True)
class Curves:
    """Two losses over the noise level: points of each line as SVG takes them, and the top of the scale."""

    with_caption: str
    with_blank: str
    top: float


@dataclass(frozen=True, slots=True)
class DatasetView:
    """The figures of a dataset. name: of the dataset here, or None if it is none of ours."""

    path: str
    name: str | None
    figures: Mapping[str, Any]
    curves: Curves | None


@dataclass(frozen=True, slots=True)
class Whisker:
    """A value with its interval, in percent of a scale that all pictures share."""

    left: float
    width: float
    middle: float
    zero: float


@dataclass(frozen=True, slots=True)
class ImageView:
    """A picture of a report. dataset: the one here that holds it, or None."""

    image: Mapping[str, Any]
    dataset: str | None
    value: float | None
    gain: str
    whisker: Whisker | None


@dataclass(frozen=True, slots=True)
class ReportView:
    """A report, one page of its pictures."""

    run: Mapping[str, Any]
    datasets: Sequence[DatasetView]
    images: Sequence[ImageView]
    notes: Sequence[str]
    metric: Metric
    flagged: bool
    page: int
    pages: int
    total: int


def report_view(
    services: Services, body: Mapping[str, Any], metric: Metric, flagged: bool, page: int
) -> ReportView:
    """A report for its page: the pictures sorted by a metric, the worst first."""
    root = services.preferences.datasets_root
    sets = [_figures(each) for each in body["datasets"]]
    names = {each["path"]: _name(root, each["path"]) for each in sets}
    images = [_image(each) for each in body["images"] if each.get("flagged") or not flagged]
    sign = -1 if METRICS[metric][1] else 1

    def badness(image: Mapping[str, Any]) -> tuple[bool, float]:
        value = value_of(image, metric)
        return value is None, 0.0 if value is None else sign * value

    images = sorted(images, key=badness)
    pages = max(1, -(-len(images) // PAGE))
    scale = _scale(body["images"], metric)
    shown = [
        ImageView(
            image, names.get(image["dataset"]), value_of(image, metric), gain_text(image),
            _whisker(image.get(metric) if metric == "log_ratio" else image.get(f"{metric}_interval"), scale),
        )
        for image in images[(page - 1) * PAGE : page * PAGE]
    ]  # fmt: skip
    datasets = [DatasetView(each["path"], names[each["path"]], each, _curves(each["curve"])) for each in sets]
    notes = body.get("notes")
    told = list(map(str, notes)) if isinstance(notes, list) else []
    return ReportView(
        run=_run(body["run"]), datasets=datasets, images=shown, notes=told,
        metric=metric, flagged=flagged, page=page, pages=pages, total=len(images),
    )  # fmt: skip


_RUN_TEXTS = ("model", "lora", "timestep_type", "seed", "samples_per_image", "eval_resolution")
_COUNTS = ("num_measured", "num_images", "num_flagged", "num_suggestions")
_FIGURES = ("mean_loss", "share_helped", "retrieval_top1")


# A report comes from a file: whatever it holds, a page gets values of the kinds that it shows.
def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    texts = {key: _text(run.get(key)) for key in _RUN_TEXTS}
    return texts | {key: _number(run.get(key)) for key in ("fixed_noise_std", "seconds")}


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    reasons = found.get("reasons")
    reasons = reasons if isinstance(reasons, dict) else {}
    return {
        "path": _text(found.get("path")), "curve": found.get("curve"),
        "log_ratio": _interval(found.get("log_ratio")),
        "reasons": {str(code): _text(count) for code, count in reasons.items()},
        **{key: _text(found.get(key)) or "–" for key in _COUNTS},
        **{key: _number(found.get(key)) for key in _FIGURES},
    }  # fmt: skip


def _image(image: Mapping[str, Any]) -> dict[str, Any]:
    suggestion = image.get("suggestion")
    return {
        **image, "path": _text(image.get("path")), "dataset": _text(image.get("dataset")),
        "caption": _text(image.get("caption")), "flagged": bool(image.get("flagged")),
        "reasons": messages(image.get("reasons")), "hints": messages(image.get("hints")),
        "suggestion": _text(suggestion.get("caption")) if isinstance(suggestion, dict) else "",
    }  # fmt: skip


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) else ""


def _interval(value: Any) -> dict[str, float | None] | None:
    if not isinstance(value, dict) or _number(value.get("mean")) is None:
        return None
    return {key: _number(value.get(key)) for key in ("mean", "low", "high")}


def _name(root: Any, path: str) -> str | None:
    folder = dataset_folder(path)
    return folder.name if folder.parent == root and is_folder(folder) else None


def value_of(image: Mapping[str, Any], metric: Metric) -> float | None:
    """A picture's value of a metric; None if it was not measured."""
    value = image.get(metric)
    return _number(value.get("mean") if isinstance(value, dict) else value)


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if -1e300 < value < 1e300 else None


def gain_text(image: Mapping[str, Any]) -> str:
    """What the caption did, in words; empty if that was not measured."""
    value = value_of(image, "log_ratio")
    if value is None:
        return ""
    share = 1 - math.exp(-min(max(value, -50.0), 50.0))
    if share >= 0:
        return f"lowers the loss by {share:.0%}"
    return f"raises the loss by {math.exp(min(-value, 50.0)) - 1:.0%}"


def _scale(images: Sequence[Mapping[str, Any]], metric: Metric) -> tuple[float, float]:
    values = [value for value in (value_of(image, metric) for image in images) if value is not None]
    low, high = min([0.0, *values]), max([0.0, *values])
    margin = (high - low) * 0.25 or 1.0
    return low - margin, high + margin


def _whisker(interval: Any, scale: tuple[float, float]) -> Whisker | None:
    if not isinstance(interval, dict):
        return None
    low, high = scale
    middle = _number(interval.get("mean"))
    if middle is None:
        return None

    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)

    ends = [_number(interval.get("low")), _number(interval.get("high"))]
    left, right = (middle if end is None else end for end in ends)
    return Whisker(place(left), max(0.5, place(right) - place(left)), place(middle), place(0.0))


def _curves(points: Any) -> Curves | None:
    if not isinstance(points, list):
        return None
    found = [each for each in points if isinstance(each, dict) and _number(each.get("t")) is not None]
    lines: list[list[tuple[float, float]]] = []
    for key in ("loss_with_caption", "loss_with_blank"):
        pairs = [(_number(each.get("t")), _number(each.get(key))) for each in found]
        lines.append([(t, value) for t, value in pairs if t is not None and value is not None])
    if len(lines[0]) < 2:
        return None
    top = max(value for line in lines for _, value in line) or 1.0
    texts = [
        " ".join(f"{t * WIDTH:.1f},{HEIGHT - value / top * HEIGHT:.1f}" for t, value in line)
        for line in lines
    ]
    return Curves(texts[0], texts[1], top)
