"""The held-out loss of a run in one picture: relative to its start with its band, and by noise level."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from toolkit.evaluation.validation_record import ValidationRecord
from toolkit.runs import atomic

HELD_OUT, PROBE, FAINT, LINE = "#0b4f9e", "#c2571a", "#6e7781", "#d8dee4"


def validation_plot(record: ValidationRecord, path: Path, title: str) -> Path:
    """Write a PNG of a record with at least one reading. Raises RunError if the disk refuses."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.2), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    change_axes, level_axes = figure.subplots(1, 2, width_ratios=(5, 3))
    _draw_changes(change_axes, record, title)
    _draw_levels(level_axes, record)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    atomic.write_bytes(path, buffer.getvalue())
    return path


def _draw_changes(axes: Any, record: ValidationRecord, title: str) -> None:
    rows = [record.summary(reading) for reading in record.readings]
    for name, key, colour in (("held-out", "val_change", HELD_OUT), ("trained", "probe_change", PROBE)):
        mean, low, high = (
            [100 * (row.get(f"{key}{end}", 0.0)) for row in rows] for end in ("", "_low", "_high")
        )
        axes.fill_between(record.steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(record.steps, mean, "o-", color=colour, linewidth=2, markersize=4, label=f"{name} pictures")
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.axvline(record.best.step, color=HELD_OUT, linestyle=(0, (2, 3)), linewidth=1)
    axes.annotate("best", (record.best.step, 1), (4, -4), xycoords=("data", "axes fraction"),
                  textcoords="offset points", va="top", fontsize=8, color=HELD_OUT)  # fmt: skip
    overfit = record.overfit
    if overfit is not None:
        axes.axvline(overfit.step, color="#b42318", linestyle=(0, (2, 3)), linewidth=1)
        axes.annotate("overfitting", (overfit.step, 1), (4, -16), xycoords=("data", "axes fraction"),
                      textcoords="offset points", va="top", fontsize=8, color="#b42318")  # fmt: skip
    axes.set_title(title, loc="left", fontweight="bold", fontsize=12)
    axes.set_ylabel(f"loss since step {record.baseline.step}, % (95 % band)")
    axes.set_xlabel("step")
    axes.legend(frameon=False, fontsize=9)
    _tidy(axes)


def _draw_levels(axes: Any, record: ValidationRecord) -> None:
    places = range(len(record.labels))
    readings = {"start": record.baseline, "best": record.best, "end": record.readings[-1]}
    readings = {name: each for name, each in readings.items() if name == "best" or each is not record.best}
    styles = {"start": FAINT, "best": HELD_OUT, "end": PROBE}
    for name, reading in readings.items():
        label = f"{name}, step {reading.step}"
        axes.plot(places, reading.held_out.mean(axis=0), "o-", color=styles[name], markersize=4, label=label)
    axes.set_xticks(places, record.labels, rotation=30 if len(record.labels) > 5 else 0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("noise level")
    axes.set_title("held-out loss", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color=FAINT)
