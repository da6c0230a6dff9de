"""Changed captions of an image: what is measured of them, in which order, and on which draws. Torch-free.

First every part of the caption, left out and exchanged for a few others. Where that makes a part look wrong,
and suggestions are asked for, everything in the data set that is of its kind. The best of many fits better
than it deserves on the draws that chose it, so it is measured again on others. Beside no caption too, since
an exchange of one word is no remedy for a caption that is wrong as a whole; and beside the caption without
what it exchanges, since that may be all that there is to gain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy

from toolkit.evaluation.draws_layout import BLOCK
from toolkit.evaluation.edits import Edit, Editor, without
from toolkit.evaluation.outcomes import OWN, Outcome, Suggestion
from toolkit.evaluation.records import Record, RecordFile
from toolkit.evaluation.statistics import Floats, log_ratios

CONFIRMING = range(BLOCK, 4 * BLOCK)  # draws that did not choose a suggestion
SUSPECTS = 3  # parts of a caption that are looked into

# (an image, captions, draws) -> losses (captions, draws) and levels (draws,)
Measure = Callable[[Outcome, Sequence[str], range], tuple[list[list[float]], list[float]]]


@dataclass(frozen=True)
class EditStages:
    """What an image's changed captions cost and gain. suggest: look for the exchange that fits best."""

    editor: Editor
    records: RecordFile
    suggest: bool = False

    def fill(self, outcome: Outcome, measure: Measure | None = None) -> bool:
        """Give an outcome its edits; whether anything was measured for it.

        measure: for what is not in the records (None: all of it is; raises RunError where it is not). The
        outcome has its own losses on the first draws.
        """
        begun = len(self.records)
        draws = range(min(BLOCK, outcome.num_draws))
        self._add(outcome, "edits", self.editor.edits(outcome.item), draws, measure)
        if self.suggest and outcome.edit_losses is not None:
            parts = suspects(outcome)
            more = self.editor.more(outcome.item, parts, outcome.edits) if parts else []
            self._add(outcome, "more", more, draws, measure)
            self._confirm(outcome, measure)
        return len(self.records) > begun

    def _add(
        self, outcome: Outcome, stage: str, edits: Sequence[Edit], draws: range, measure: Measure | None
    ) -> None:
        """Add some edits with their losses to those of an outcome."""
        if not edits:
            return
        record = self._record(outcome, stage, [edit.caption for edit in edits], draws, measure)
        losses = numpy.array(record.losses)
        known = outcome.edit_losses
        outcome.edits = [*outcome.edits, *edits]
        outcome.edit_losses = losses if known is None else numpy.concatenate([known, losses])

    def _confirm(self, outcome: Outcome, measure: Measure | None) -> None:
        ratios = edit_ratios(outcome)
        better = sorted((i for i in range(len(ratios)) if ratios[i] < 0), key=lambda i: float(ratios[i]))
        edits = (outcome.edits[i] for i in better)
        best = next((edit for edit in edits if self.editor.akin(outcome.item, edit)), None)
        if best is None:
            return
        own = outcome.item.caption
        less = without(own, best.caption)
        texts = [best.caption, own, "", *([less] if less != best.caption else [])]
        record = self._record(outcome, "suggestion", texts, CONFIRMING, measure)
        outcome.suggestion = Suggestion(best, numpy.array(record.losses), numpy.array(record.t))

    def _record(
        self, outcome: Outcome, stage: str, texts: Sequence[str], draws: range, measure: Measure | None
    ) -> Record:
        """The losses of some captions of an image: recorded, or measured now."""
        # Which captions depends on all others of the data set, so they are part of the key.
        key = hashlib.sha256("\x1f".join([outcome.key, *texts]).encode()).hexdigest()[:32]
        record = self.records.get(stage, key, draws.start)
        if record is not None and (len(record.losses), len(record.t)) == (len(texts), len(draws)):
            return record
        if measure is None:
            raise self.records.gone()
        record = Record(key, stage, draws.start, *measure(outcome, texts, draws))
        self.records.append([record])
        return record


def edit_ratios(outcome: Outcome) -> Floats:
    """Mean log loss(changed) - log loss(own) of each edit (E,). Raises ValueError if none was measured."""
    if outcome.edit_losses is None:
        raise ValueError("no changed captions were measured")
    own = outcome.of(OWN)[: outcome.edit_losses.shape[1]]
    found: Floats = log_ratios(outcome.edit_losses, own[None]).mean(axis=1)
    return found


def suspects(outcome: Outcome) -> list[str]:
    """The parts without which, or with another in whose place, a caption fits better; the worst few."""
    best: dict[str, float] = {}
    for edit, ratio in zip(outcome.edits, edit_ratios(outcome).tolist(), strict=True):
        best[edit.part] = min(best.get(edit.part, ratio), ratio)
    return sorted((part for part in best if best[part] < 0), key=lambda part: (best[part], part))[:SUSPECTS]
