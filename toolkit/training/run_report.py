"""The report of a run: one page without other files, from what lies in its folder. Torch-free.

Readable on a phone, light and dark; plots are SVG made from the numbers, pictures are inside.
"""

from __future__ import annotations

import base64
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from toolkit.evaluation.validation_record import ValidationRecord, overfit_note, read_validation
from toolkit.runs import atomic
from toolkit.runs.layout import RunFolder
from toolkit.runs.levels import NUM_LEVELS, mean_by_level
from toolkit.runs.metrics import Row, read_metrics
from toolkit.text import percent, size
from toolkit.training.progress import duration
from toolkit.training.report import smooth
from toolkit.training.svg import Bars, Line, Plot, bars, plot

TEMPLATES = Path(__file__).parent / "templates"
MOST_NOTES = 40
SHEET_WIDTH = 1400  # pixels; wider pictures are scaled down
PREVIEW_EDGE = 256
LEAST_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture of the page: a data URL, what it shows, and its size in pixels."""

    url: str
    text: str
    width: int
    height: int


def write_run_report(run: RunFolder, prompts: Sequence[str] | None = None) -> Path:
    """Write report.html from the folder's files. Raises RunError if it cannot be written."""
    atomic.write_text(run.report_path, render(run, prompts))
    return run.report_path


def render(run: RunFolder, prompts: Sequence[str] | None = None) -> str:
    """The page as text. prompts: of the previews, in their order."""
    rows = read_metrics(run.metrics_path)
    record = read_validation(run.validation_path)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "number": lambda value: f"{value:.4g}"}
    return environment.get_template("run_report.html").render(
        name=run.name,
        facts=facts(run, rows),
        config=_text(run.config_path),
        loss=loss_plot(rows),
        rate=line_plot(rows, "lr"),
        levels=level_bars(rows),
        validation=validation_part(record),
        best_files=[path.name for path in run.best_files()],
        sheet=picture(run.contact_sheet_path, "previews: prompts by steps", SHEET_WIDTH),
        keeper=picture(run.keeper_sheet_path, "saved models by strength of the network", SHEET_WIDTH),
        previews=previews(run, prompts or []),
        coverage=_json(run.coverage_path),
        least_shown=LEAST_SHOWN,
        timings=timings(rows),
        notes=notes(_text(run.log_path)),
    )


def facts(run: RunFolder, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What was trained on what, in a few lines: (name, value)."""
    process = _process(run)
    train, network = _part(process, "train"), _part(process, "network")
    kind = " ".join(str(part) for part in (network.get("type"), _rank(network)) if part)
    found = [
        ("model", str(_part(process, "model").get("name_or_path", ""))),
        ("trained", kind or str(process.get("type", ""))),
        ("pictures", ", ".join(_folders(process))),
        ("steps", f"{rows[-1]['step'] if rows else 0} of {train.get('steps', '?')}"),
        ("batch size", str(train.get("batch_size", ""))),
        ("optimizer", f"{train.get('optimizer', '')} at {train.get('lr', '')}"),
        ("attempts", str(max((row.get("attempt", 1) for row in rows), default=0))),
    ]
    return [(name, value) for name, value in found if value.strip()]


def _process(run: RunFolder) -> dict[str, Any]:
    """The process of the run's name in its config, or an empty one."""
    try:
        content = yaml.safe_load(_text(run.config_path)) or {}
        entries = content["config"]["process"]
    except (yaml.YAMLError, KeyError, TypeError):
        return {}
    own = [entry for entry in entries if isinstance(entry, dict) and entry.get("name") == run.name]
    first = entries[0] if entries and isinstance(entries[0], dict) else {}
    return own[0] if own else first


def _part(section: dict[str, Any], key: str) -> dict[str, Any]:
    value = section.get(key)
    return value if isinstance(value, dict) else {}


def _rank(network: dict[str, Any]) -> str:
    rank = next((network[key] for key in ("linear", "rank", "lora_dim") if network.get(key)), None)
    return f"of rank {rank}" if rank else ""


def _folders(process: dict[str, Any]) -> list[str]:
    entries = process.get("datasets") or []
    names = (
        entry.get("folder_path") or entry.get("dataset_path") for entry in entries if isinstance(entry, dict)
    )
    return [str(name) for name in names if name]


# -- plots -----------------------------------------------------------------------------------------------


def _points(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]


def loss_plot(rows: Sequence[Row]) -> Plot | None:
    """The loss of each step and smoothed, or None without any."""
    points = _points(rows, "loss")
    if len(points) < 2:
        return None
    losses = [loss for _, loss in points]
    smoothed = smooth(losses, 1 - 1 / min(100, max(1, len(losses) / 20)))
    steady = [(step, value) for (step, _), value in zip(points, smoothed, strict=True)]
    return plot([Line("each step", points, "faint"), Line("smoothed", steady, "first")], floor=0.0)


def line_plot(rows: Sequence[Row], key: str) -> Plot | None:
    """One number over the steps, or None without any."""
    points = _points(rows, key)
    return plot([Line(key, points, "second")], floor=0.0, height=90.0) if len(points) > 1 else None


def level_bars(rows: Sequence[Row]) -> Bars | None:
    """The mean loss of each tenth of t in the first and the last half of the run, or None without any."""
    told = [row for row in rows if row.get("t_counts")]
    half = len(told) // 2
    series = {"first half": mean_by_level(told[:half])[0], "last half": mean_by_level(told[half:])[0]}
    if not half:
        series = {"the run": mean_by_level(told)[0]}
    if not any(value is not None for values in series.values() for value in values):
        return None
    labels = [f"{place / NUM_LEVELS:g}" for place in range(NUM_LEVELS)]
    return bars(labels, list(series.values()), list(series))


def validation_part(record: ValidationRecord | None) -> dict[str, Any] | None:
    """What the page says of a validation: plot, rows and sentences; None without one."""
    if record is None or not record.readings:
        return None
    rows = [{"step": reading.step, **record.summary(reading)} for reading in record.readings]
    lines = []
    for name, key, style in (
        ("held-out pictures", "val_change", "first"),
        ("trained", "probe_change", "second"),
    ):
        ends = [
            [(row["step"], 100 * row.get(f"{key}{end}", 0.0)) for row in rows]
            for end in ("", "_low", "_high")
        ]
        lines.append(Line(name, ends[0], style, low=ends[1], high=ends[2]))
    overfit = record.overfit
    last = record.changes_by_level(record.readings[-1])
    return {
        "plot": plot(lines, unit=" %", marks=[(record.best.step, "best")]) if len(rows) > 1 else None,
        "rows": rows,
        "baseline": record.baseline.step,
        "best": record.best.step,
        "best_saved": record.saved.get(record.best_saved) if record.best_saved is not None else None,
        "best_saved_step": record.best_saved,
        "overfit": overfit_note(overfit, len(record.units)) if overfit else None,
        "levels": list(zip(record.labels, last, strict=True)) if len(rows) > 1 else [],
        "num_held_out": len(record.units),
        "num_probe": len(record.probe_units),
    }


# -- pictures, texts -------------------------------------------------------------------------------------


def picture(path: Path, text: str, widest: int) -> Shown | None:
    """A picture file for the page, scaled down if need be; None if there is none that can be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    factor = widest / max(image.size)
    if factor < 1:
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    data = BytesIO()
    image.save(data, "WEBP", quality=88)
    url = f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
    return Shown(url, text, image.width, image.height)


def previews(run: RunFolder, prompts: Sequence[str]) -> list[Shown]:
    """The newest previews, each with its prompt."""
    from toolkit.runs.images import read_recipe

    by_step = run.samples_by_step()
    if not by_step:
        return []
    found = []
    for index, path in sorted(by_step[max(by_step)].items()):
        shown = picture(path, "", PREVIEW_EDGE)
        if shown is not None:
            text = prompts[index] if index < len(prompts) else (read_recipe(path) or {}).get("prompt", "")
            found.append(Shown(shown.url, str(text), shown.width, shown.height))
    return found


def timings(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """How long things took, and the memory of the GPU: (name, value)."""
    steps = [row["seconds"] for row in rows if isinstance(row.get("seconds"), int | float)]
    looks = [row["val_seconds"] for row in rows if isinstance(row.get("val_seconds"), int | float)]
    found = []
    if steps:
        found += [
            ("a step, median", f"{statistics.median(steps):.3g} s"),
            ("all steps", duration(sum(steps))),
        ]
    if looks:
        found += [("a validation, median", f"{statistics.median(looks):.3g} s"),
                  ("all validations", duration(sum(looks)))]  # fmt: skip
    if peaks := [row["peak_device_bytes"] for row in rows if isinstance(row.get("peak_device_bytes"), int)]:
        found.append(("memory of the GPU, at most", size(max(peaks))))
    return found


def notes(log: str) -> list[str]:
    """The notes and warnings of a log, each once, the last ones if there are many."""
    told = [line for line in log.splitlines() if line.startswith(("note:", "warning:"))]
    return list(dict.fromkeys(told))[-MOST_NOTES:]


def _text(path: Path) -> str:
    try:
        return atomic.read_bytes(path).decode("utf-8", "replace")
    except OSError:
        return ""


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(_text(path))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
