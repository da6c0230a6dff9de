"""From measured losses to a report: effects, how sure they are, flags. Torch-free."""

from __future__ import annotations

import math
import statistics as plain
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy

from toolkit.evaluation.edit_stages import edit_ratios
from toolkit.evaluation.flags import (
    Measurement,
    Reason,
    hints,
    measured_reasons,
    text_reasons,
)
from toolkit.evaluation.report import (
    BaseReport,
    CurvePoint,
    DatasetReport,
    DrawsReport,
    EditReport,
    ImageReport,
    Interval,
    OtherCaption,
    ReasonReport,
    Report,
    SuggestionReport,
)
from toolkit.evaluation.statistics import (
    Estimate,
    Floats,
    anytime_p,
    bootstrap_interval,
    conformal_p,
    e_process,
    e_q_values,
    estimate_over_levels,
    log_ratios,
    q_values,
    rank_among,
    signed_rank_p,
)

if TYPE_CHECKING:
    from toolkit.evaluation.edits import Edit
    from toolkit.evaluation.outcomes import Outcome

NUM_CURVE_POINTS = 10


@dataclass(frozen=True)
class Context:
    """What is known of the data set beside the measurements.

    name: path of an outcome in the report. noise_std: t -> standard deviation of the noise. tokens: caption
    -> (its tokens, the most that can be read). stopping: draws were stopped by what they said. twins: reasons
    by path for pictures that look the same. copies: how many images have a caption without meaning to (see
    flags.unmeant_copies). relative: tell losses also as shares of their mean.
    """

    name: Callable[[Outcome], str]
    noise_std: Callable[[float], float]
    dataset: str
    rate: float = 0.1
    trigger: str | None = None
    tokens: Callable[[str], tuple[int, int]] | None = None
    stopping: bool = False
    copies: Counter[str] = field(default_factory=Counter)
    twins: Mapping[Path, Reason] = field(default_factory=dict)
    relative: bool = True


class Kept(Protocol):
    """What reports can be put into and read from again: a list, or a file."""

    def append(self, image: ImageReport, /) -> None:
        """Add one."""

    def __iter__(self) -> Iterator[ImageReport]:
        """All of them, in order."""


def summarise(outcomes: Sequence[Outcome], context: Context) -> list[ImageReport]:
    """The report of every image, in the order given."""
    return list(summaries(outcomes, context, []))


def summaries(outcomes: Sequence[Outcome], context: Context, kept: Kept) -> Iterator[ImageReport]:
    """The same one by one. kept: empty; has them until all images are known, which some fields need."""
    known, items = _Known(context), []
    for outcome in outcomes:
        items.append(outcome.item)
        report = _effects(outcome, context)
        known.add(report)
        kept.append(report)
    p_of, other_of, typical, mean = known.judge()
    for item, report in zip(items, kept, strict=True):
        if report.p_value is not None:
            report.q_value = next(p_of)
        if report.best_other is not None:
            report.best_other.q_value = next(other_of)
        reasons = _reasons(report, context, typical)
        if item.path in context.twins:
            reasons.append(context.twins[item.path])
        report.reasons = [ReasonReport(code=r.code, message=r.message) for r in reasons]
        report.hints = [ReasonReport(code=r.code, message=r.message) for r in hints(report.caption)]
        report.flagged = bool(reasons)
        if context.relative and mean > 0 and report.loss is not None:
            report.loss_relative = report.loss / mean
        yield report


class _Known:
    """The numbers of all images that the fields of each depend on."""

    def __init__(self, context: Context) -> None:
        self._stopping = context.stopping
        self._evidence, self._others, self._gains, self._losses = (array("d") for _ in range(4))

    def add(self, report: ImageReport) -> None:
        """Take what is needed from a report."""
        if report.p_value is not None:
            self._evidence.append((report.e_value or 0.0) if self._stopping else report.p_value)
        if report.best_other is not None:
            self._others.append(report.best_other.p_value)
        if report.log_ratio is not None:
            self._gains.append(report.log_ratio.mean)
        self._losses.append(report.loss or 0.0)

    def judge(self) -> tuple[Iterator[float], Iterator[float], float, float]:
        """q-values of the captions and of their best rivals, in order; the typical gain; the mean loss."""
        # With stopping, e-BH: it holds however the evidence of one image decided on the draws of another.
        found = e_q_values(self._evidence) if self._stopping else q_values(self._evidence)
        typical = plain.median(self._gains) if self._gains else 0.0
        mean = plain.fmean(self._losses) if self._losses else 0.0
        return iter(found), iter(q_values(self._others)), typical, mean


def interval(found: Estimate) -> Interval:
    """An estimate as it stands in a report."""
    finite = math.isfinite(found.se)
    return Interval(
        mean=found.mean,
        se=found.se if finite else None,
        low=found.low if finite else None,
        high=found.high if finite else None,
    )


def _effects(outcome: Outcome, context: Context) -> ImageReport:
    """Everything about one image that needs no other."""
    item = outcome.item
    own = outcome.of("own")
    blank = outcome.of("blank") if "blank" in outcome.names else None
    ablated = outcome.of("ablated") if "ablated" in outcome.names else None
    report = ImageReport(
        path=context.name(outcome),
        dataset=context.dataset,
        caption=item.caption,
        sha256=item.sha256,
        width=item.bucket.width,
        height=item.bucket.height,
        num_draws=outcome.num_draws,
        loss=float(own.mean()),
        loss_with_caption=float(own.mean()),
        loss_with_blank=None if blank is None else float(blank.mean()),
        loss_ablated=None if ablated is None else float(ablated.mean()),
        draws=_draws(outcome, context, own, blank, ablated),
    )
    against = ablated if ablated is not None else blank
    if against is not None:
        report.ablation_delta = float((against - own).mean())
        report.ablation_delta_interval = interval(estimate_over_levels(against - own, outcome.t))
    if blank is not None and item.caption:
        gains = log_ratios(blank, own)
        report.log_ratio = interval(estimate_over_levels(gains, outcome.t))
        report.p_value = anytime_p(gains) if context.stopping else signed_rank_p(gains)
        report.e_value = float(e_process(gains)[-1])
    _compare_with_others(report, outcome, own, anytime_p if context.stopping else signed_rank_p)
    _add_edits(report, outcome)
    if outcome.base_losses is not None:
        known = estimate_over_levels(log_ratios(outcome.base_losses, own), outcome.t)
        report.base = BaseReport(loss=float(outcome.base_losses.mean()), log_ratio=interval(known))
    return report


def _draws(
    outcome: Outcome, context: Context, own: Floats, blank: Floats | None, ablated: Floats | None
) -> DrawsReport:
    return DrawsReport(
        t=outcome.t.tolist(),
        noise_std=[context.noise_std(t) for t in outcome.t.tolist()],
        loss_with_caption=own.tolist(),
        loss_with_blank=None if blank is None else blank.tolist(),
        loss_ablated=None if ablated is None else ablated.tolist(),
    )


def _compare_with_others(
    report: ImageReport, outcome: Outcome, own: Floats, p_of: Callable[[Floats], float]
) -> None:
    others = outcome.others
    if not len(others) or not report.caption:
        return
    ratios = log_ratios(others, own[None])
    means = ratios.mean(axis=1)
    report.num_others = len(others)
    report.rank = rank_among(0.0, [float(mean) for mean in means])
    report.rank_p_value = conformal_p(report.rank, len(others))
    best = int(means.argmin())
    # Every other had its chance, so the best of them pays for all (Bonferroni).
    p = min(1.0, len(others) * p_of(ratios[best]))
    texts = [
        text for name, text in zip(outcome.names, outcome.texts, strict=True) if name.startswith("other:")
    ]
    report.best_other = OtherCaption(
        caption=texts[best] or "", log_ratio=float(means[best]), p_value=p, q_value=1.0
    )


def _add_edits(report: ImageReport, outcome: Outcome) -> None:
    if outcome.edit_losses is None:
        return
    ratios = [float(ratio) for ratio in edit_ratios(outcome)]
    pairs = list(zip(outcome.edits, ratios, strict=True))
    report.edits = sorted((_edit(edit, ratio) for edit, ratio in pairs), key=lambda edit: edit.log_ratio)
    swaps = [ratio for edit, ratio in pairs if edit.replacement is not None and not edit.further]
    report.edit_contrast = min(swaps, default=None)
    found = outcome.suggestion
    if found is not None:
        own, *more = (estimate_over_levels(row, found.t) for row in found.log_ratios())
        if all(each.high < 0 for each in (own, *more)):
            chosen = _edit(found.edit, ratios[outcome.edits.index(found.edit)])
            report.suggestion = SuggestionReport(**chosen.model_dump(), confirmed=interval(own))


def _edit(edit: Edit, log_ratio: float) -> EditReport:
    return EditReport(part=edit.part, replacement=edit.replacement, caption=edit.caption, log_ratio=log_ratio)


def _reasons(report: ImageReport, context: Context, typical: float) -> list[Reason]:
    reasons: list[Reason] = []
    if (
        report.log_ratio is not None
        and report.log_ratio.high is not None
        and report.log_ratio.low is not None
    ):
        best = report.best_other
        found = Measurement(
            log_gain=report.log_ratio.mean,
            low=report.log_ratio.low,
            high=report.log_ratio.high,
            q_hurts=report.q_value,
            q_other=best.q_value if best is not None and best.log_ratio < 0 else None,
            best_other=best.caption if best is not None else None,
        )
        reasons += measured_reasons(found, typical_gain=typical, rate=context.rate)
    num_tokens, max_tokens = context.tokens(report.caption) if context.tokens else (None, None)
    report.num_tokens = num_tokens
    if num_tokens is not None and max_tokens is not None:
        report.tokens_lost = max(0, num_tokens - max_tokens)
    return reasons + text_reasons(
        report.caption,
        trigger=context.trigger,
        num_tokens=num_tokens,
        max_tokens=max_tokens,
        copies=context.copies[report.caption.casefold()],
    )


def dataset_report(path: str, num_images: int, images: Iterable[ImageReport], *, seed: int) -> DatasetReport:
    """All images of a data set together; they are gone through once."""
    losses, gains, base = (array("d") for _ in range(3))
    num_flagged, num_suggestions, num_ranked, num_first, reasons = 0, 0, 0, 0, Counter[str]()
    draws = _Draws()
    for image in images:
        losses.extend([image.loss] if image.loss is not None else [])
        gains.extend([image.log_ratio.mean] if image.log_ratio is not None else [])
        base.extend([image.base.log_ratio.mean] if image.base is not None else [])
        num_ranked += image.rank is not None
        num_first += image.rank == 1
        num_flagged += image.flagged
        num_suggestions += image.suggestion is not None
        reasons.update(reason.code for reason in image.reasons)
        draws.add(image.draws)
    return DatasetReport(
        path=path,
        num_images=num_images,
        num_measured=len(losses),
        mean_loss=plain.fmean(losses) if losses else None,
        median_loss=plain.median(losses) if losses else None,
        log_ratio=interval(bootstrap_interval(gains, seed=seed)) if gains else None,
        median_log_ratio=plain.median(gains) if gains else None,
        base_log_ratio=interval(bootstrap_interval(base, seed=seed)) if base else None,
        share_helped=sum(gain > 0 for gain in gains) / len(gains) if gains else None,
        retrieval_top1=num_first / num_ranked if num_ranked else None,
        num_flagged=num_flagged,
        num_suggestions=num_suggestions,
        reasons=dict(reasons),
        curve=draws.curve(),
    )


def summary_lines(report: Report) -> list[str]:
    """A report in a few lines."""
    lines = []
    for dataset in report.datasets:
        mean = "nothing measured" if dataset.mean_loss is None else f"mean loss: {dataset.mean_loss:.4f}"
        lines.append(f"{dataset.path}: total examples: {dataset.num_measured}, {mean}")
        if dataset.log_ratio is not None and dataset.share_helped is not None:
            change = math.exp(-dataset.log_ratio.mean) - 1
            changed = f"{'raise' if change > 0 else 'lower'} the loss by {abs(change):.1%}"
            lines.append(f"  captions {changed} and help {dataset.share_helped:.0%} of the images")
        reasons = "".join(f", {code} {count}" for code, count in dataset.reasons.items())
        lines.append(f"  flagged captions: {dataset.num_flagged}{reasons}")
        if dataset.num_suggestions:
            lines.append(f"  captions with a word for which another fits better: {dataset.num_suggestions}")
    spent, full = report.run.num_draws, report.run.num_draws_full
    if spent < full:
        lines.append(f"stopping early spent {spent} of {full} draws")
    return [*lines, *(f"note: {note}" for note in report.notes)]


class _Draws:
    """Levels and losses of the draws of many images, added up in equal parts of the schedule."""

    def __init__(self) -> None:
        self._sums = numpy.zeros((5, NUM_CURVE_POINTS))  # of 1, t, loss, loss without caption, log ratio
        self._known = True

    def add(self, draws: DrawsReport | None) -> None:
        """Take those of an image, if it has any."""
        if draws is None:
            return
        t, own = numpy.array(draws.t), numpy.array(draws.loss_with_caption)
        self._known = self._known and draws.loss_with_blank is not None
        blank = numpy.array(draws.loss_with_blank) if self._known else own
        parts = numpy.minimum(NUM_CURVE_POINTS - 1, (t * NUM_CURVE_POINTS - 1e-9).astype(int))
        for sums, values in zip(
            self._sums, (numpy.ones_like(t), t, own, blank, log_ratios(blank, own)), strict=True
        ):
            numpy.add.at(sums, parts, values)

    def curve(self) -> list[CurvePoint]:
        """Mean losses in the parts of the schedule; those without draws are left out."""
        count, t, own, blank, ratio = self._sums
        return [
            CurvePoint(
                t=float(t[part] / count[part]),
                num_draws=int(count[part]),
                loss_with_caption=float(own[part] / count[part]),
                loss_with_blank=float(blank[part] / count[part]) if self._known else None,
                log_ratio=float(ratio[part] / count[part]) if self._known else None,
            )
            for part in numpy.flatnonzero(count)
        ]


def usefulness_note(found: DatasetReport) -> str:
    """A line for a data set whose captions as a whole do not help the model; empty if they do."""
    if found.share_helped is None or found.median_log_ratio is None or found.median_log_ratio > 0:
        return ""
    return (
        f"{found.path}: {found.share_helped:.0%} of the captions help, and what captions here usually gain "
        "is nothing, so that none is flagged as doing nothing: the model may not know what they say"
    )
