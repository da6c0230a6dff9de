"""What a run's validation has found, for its page. Torch-free."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.text import percent
from web.runs.plain_files import open_plain


@dataclass(frozen=True, slots=True)
class ValidationView:
    """The last reading against the first, the best save, and the warning of overfitting if there is one."""

    first: int
    last: int
    num_pictures: int
    held_out: str
    probe: str
    gap: str
    best_step: int | None
    best_file: str
    warning: str


def validation_view(path: Path) -> ValidationView | None:
    """What a validation.json says; None without one that can be read, or before its second reading."""
    try:
        with open_plain(path) as file:
            content = json.load(file)
        readings = content["readings"]
        first, last = readings[0], readings[-1]
        if first["step"] == last["step"]:
            return None
        best = content["best_saved_step"]
        return ValidationView(
            first=first["step"], last=last["step"], num_pictures=len(content["files"]),
            held_out=_change(last, "val_change"), probe=_change(last, "probe_change"),
            gap=_change(last, "gap"), best_step=best, best_file=str(content["saved"].get(str(best), "")),
            warning=_warning(content),
        )  # fmt: skip
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # it is missing, or of another version


def _change(reading: dict[str, Any], name: str) -> str:
    return _with_band(reading[name], reading[f"{name}_low"], reading[f"{name}_high"])


def _with_band(mean: float | None, low: float | None, high: float | None) -> str:
    """`-3.1 % (-4.0 to -2.2 %)`; a bound that nobody knows is null."""
    if mean is None:
        return "not known"
    if low is None or high is None:
        return f"{_percent(mean)} (no band: too few pictures)"
    return f"{_percent(mean)} ({_percent(low)} to {_percent(high)})"


def _percent(share: float) -> str:
    return percent(share).replace(" ", "\N{NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def _warning(content: dict[str, Any]) -> str:
    found = content["overfit"]
    if found is None:
        return ""
    held_out, probe = _with_band(*found["held_out"]), _with_band(*found["probe"])
    return (
        f"Overfitting: from step {found['since']} to {found['step']} the loss of held-out pictures changed "
        f"by {held_out}, that of trained ones by {probe}; p = {found['p']:.1g}, taken for certain below "
        f"{found['limit']:.1g}."
    )
