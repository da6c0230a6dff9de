"""Logs of what the text encoder made of each caption, for looking into a surprising result.

`.eval_caption_debug_{unix time}.log` is for reading: captions, shapes and norms. `.eval_caption_cond_{unix
time}.log` is for programs: one JSON object a line with the mean and spread of each image's embeddings and how
far they are from those of the empty caption.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from toolkit.evaluation.encodings import Encodings
from toolkit.evaluation.outcomes import Outcome
from toolkit.runs import atomic


class DebugLogs:
    """The logs that were asked for, in a folder."""

    def __init__(self, folder: Path, *, captions: bool, conditioning: bool) -> None:
        now = int(time.time())
        self._debug = folder / f".eval_caption_debug_{now}.log" if captions else None
        self._conditioning = folder / f".eval_caption_cond_{now}.log" if conditioning else None

    @property
    def paths(self) -> list[Path]:
        """The files that are written."""
        return [path for path in (self._debug, self._conditioning) if path is not None]

    def write(self, outcomes: Sequence[Outcome], encodings: Encodings) -> None:
        """A line, or an entry, for every image. Raises RunError if they cannot be written."""
        if not self.paths:
            return
        blank = encodings.prompt("").embeds.float()
        with atomic.reporting(self.paths[0]), ExitStack() as stack:
            debug, conditioning = (
                None if path is None else stack.enter_context(path.open("a", encoding="utf-8"))
                for path in (self._debug, self._conditioning)
            )
            for outcome in outcomes:
                embeds = encodings.prompt(outcome.item.caption).embeds.float()
                if debug is not None:
                    debug.write(f"{_entry(outcome, embeds, blank)}\n")
                if conditioning is not None:
                    conditioning.write(f"{json.dumps(_row(outcome, embeds, blank))}\n")


def noise_lines(outcomes: Sequence[Outcome], noise_std: Callable[[float], float]) -> Iterator[str]:
    """A line about the draws of every image. noise_std: t -> standard deviation of the noise."""
    for outcome in outcomes:
        levels = ", ".join(f"{t:.4g} ({noise_std(t):.3g})" for t in outcome.t.tolist())
        yield f"[EVAL-DEBUG] {outcome.item.path.name}: t (standard deviation of the noise): {levels}"


def _distance(embeds: Tensor, blank: Tensor) -> float | None:
    """Mean squared difference from the empty caption's embeddings; None where the shapes differ."""
    return float(((embeds - blank) ** 2).mean()) if embeds.shape == blank.shape else None


def _entry(outcome: Outcome, embeds: Tensor, blank: Tensor) -> str:
    difference = _distance(embeds, blank)
    told = "other shape than" if difference is None else f"mean squared difference {difference:.4g} from"
    return (
        f"[EVAL-CAPTION-DEBUG] {outcome.item.path.name}: {outcome.item.caption!r}\n"
        f"    embeds {tuple(embeds.shape)}, norm {float(embeds.norm()):.4g}, {told} the empty caption\n"
        f"    loss with caption {outcome.of('own').mean():.6g}"
        + (f", without {outcome.of('blank').mean():.6g}" if "blank" in outcome.names else "")
    )


def _row(outcome: Outcome, embeds: Tensor, blank: Tensor) -> dict[str, object]:
    difference = _distance(embeds, blank)
    return {
        "path": outcome.item.path.name,
        "captions": [outcome.item.caption],
        "shape": list(embeds.shape),
        "means": [float(embeds.mean())],
        "stds": [float(embeds.std())],
        "ablation_mse": difference,
        "per_sample_mse": [difference],
    }
