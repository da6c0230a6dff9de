"""Measure the captions of a data set, image by image, going on from what an earlier start measured.

An image is measured under its own caption and the conditions beside it, all on the same draws: the empty
caption, the ablation that was asked for, and captions of other images. Where targets are set, draws are spent
in rounds on the images whose answer is still open.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from sys import intern
from typing import Any, Protocol

import numpy

from toolkit.data.items import MediaItem
from toolkit.errors import JobStopped, ModelError, Problem
from toolkit.evaluation.contrasts import CaptionPool
from toolkit.evaluation.draws import Design
from toolkit.evaluation.draws_layout import BLOCK, LAYOUT
from toolkit.evaluation.edits import Edit
from toolkit.evaluation.encodings import Encodings, randomised, zeroed
from toolkit.evaluation.measure import Measured, Subject, content_of, measure
from toolkit.evaluation.records import Record, RecordFile
from toolkit.evaluation.statistics import Floats, e_bh, e_process, estimate_over_levels, log_ratios
from toolkit.models.base import Architecture
from toolkit.prompt_utils import Conditioning

OWN, BLANK, ABLATED, BASE = "own", "blank", "ablated", "base"
OTHER = "other:"
EDITED = "edit:"
MAIN_STAGE, BASE_STAGE, EDIT_STAGE = "main", "base", "edits"
_NORMAL_REACH = 1.96  # standard errors, to either side of a 95 % interval where the error is known


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured for every image, and when enough is.

    num_draws: draws of each image, the most where a target is set. ablation, blank: the conditions beside the
    own caption. num_others: captions of other images. target_se: stop an image when its mean log ratio is as
    surely known as with this standard error (by its 95 % interval); target_q: when it is found to hurt at
    this false discovery rate, or to help.
    """

    design: Design = field(default_factory=Design)
    num_draws: int = 16
    batch_size: int = 1
    ablation: str = "none"
    blank: bool = True
    num_others: int = 7
    target_se: float | None = None
    target_q: float | None = None

    def identity(self) -> list[object]:
        """What the numbers depend on; not the batch size, which changes their last bits at most."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return [LAYOUT, *(values[name] for name in values if name != "batch_size")]

    @property
    def stops_early(self) -> bool:
        """Whether draws are spent in rounds."""
        return self.target_se is not None or self.target_q is not None


@dataclass
class Outcome:
    """What was measured of one image: names of its conditions, losses (A, D) and levels t (D,).

    As float32, which is what they are measured in: there may be many images.

    content: what its draws depend on. key: that and its caption. texts: what each condition said, None for
    one without words.
    """

    item: MediaItem
    content: str
    key: str
    names: list[str]
    texts: list[str | None]
    losses: Floats
    t: Floats
    edits: list[Edit] = field(default_factory=list)
    edit_losses: Floats | None = None
    base_losses: Floats | None = None

    def of(self, name: str) -> Floats:
        """The losses (D,) under one condition. Raises ValueError if it was not measured."""
        found: Floats = self.losses[self.names.index(name)].astype(numpy.float64)
        return found

    @property
    def others(self) -> Floats:
        """The losses (K, D) under captions of other images."""
        which = [i for i, name in enumerate(self.names) if name.startswith(OTHER)]
        found: Floats = self.losses[which].astype(numpy.float64)
        return found

    @property
    def num_draws(self) -> int:
        """Draws of each condition."""
        return int(self.losses.shape[1])

    def gains(self) -> Floats:
        """log loss(blank) - log loss(own) of each draw (D,): positive where the caption helped."""
        return log_ratios(self.of(BLANK), self.of(OWN))


Known = dict[tuple[str, str, int], Record]  # what an earlier start measured, by (stage, key, first draw)
Progress = Callable[[str, int, int], None]  # (what is counted, done, total)


class Switchable(Protocol):
    """A network on the model that can be switched off."""

    def enabled(self, on: bool = True) -> AbstractContextManager[None]:
        """A context in which it acts, or does not."""


def key_of(item: MediaItem) -> str:
    """What stands for an image with its caption: equal ones are measured once."""
    return hashlib.sha256(f"{content_of(item)}\x1f{item.caption}".encode()).hexdigest()[:32]


@dataclass
class Evaluator:
    """Measures images with one model. pool: the captions of the data set, also of images not measured.

    network: what can be switched off to measure the base model beside it. base_encodings: what the base
    model's text encoders say (None: the same).
    """

    model: Architecture
    encodings: Encodings
    settings: Settings
    pool: CaptionPool
    records: RecordFile
    network: Switchable | None = None
    base_encodings: Encodings | None = None
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    progress: Progress = lambda what, done, total: None
    should_stop: Callable[[], bool] = lambda: False
    num_forwards: int = 0

    def run(self, items: Sequence[MediaItem], edits: Mapping[str, list[Edit]] | None = None) -> list[Outcome]:
        """The outcome of every item, in their order. edits: by key, changed captions to measure too.

        Raises JobStopped when asked to stop; what was measured stays in the record file.
        """
        outcomes = [self._prepare(item) for item in items]
        known: Known = {(record.stage, record.key, record.first): record for record in self.records.load()}
        if self.settings.stops_early:
            self._in_rounds(outcomes, known)
        else:
            self._measure_stage("images", outcomes, range(self.settings.num_draws), known)
        if self.network is not None:
            self._measure_base(outcomes, known)
        if edits:
            self._measure_edits(outcomes, edits, known)
        return outcomes

    # -- conditions --------------------------------------------------------------------------------------

    def _prepare(self, item: MediaItem) -> Outcome:
        content = content_of(item)
        conditions: dict[str, str | None] = {OWN: item.caption}
        if self.settings.blank:
            conditions[BLANK] = ""
        if self.settings.ablation in ("zero", "random"):
            conditions[ABLATED] = None
        elif self.settings.ablation == "shuffle":
            # Where all captions are one there is none to exchange it for.
            conditions[ABLATED] = self.pool.shuffled(item.caption, content=content) or item.caption
        others = self.pool.others(item.caption, content=content, count=self.settings.num_others)
        conditions |= {f"{OTHER}{index}": text for index, text in enumerate(others)}
        names, texts = list(map(intern, conditions)), list(conditions.values())
        empty: Any = numpy.zeros((len(names), 0), numpy.float32)
        return Outcome(item, content, key_of(item), names, texts, empty, empty[0])

    def _subject(self, outcome: Outcome, names: Sequence[str], encodings: Encodings) -> Subject:
        texts = dict(zip(outcome.names, outcome.texts, strict=True))
        conditions = [self._conditioning(outcome, texts[name], encodings) for name in names]
        return Subject(outcome.item, encodings.latents(outcome.item), conditions)

    def _conditioning(self, outcome: Outcome, text: str | None, encodings: Encodings) -> Conditioning:
        if text is not None:
            return encodings.prompt(text)
        own = encodings.prompt(outcome.item.caption)
        if self.settings.ablation == "zero":
            return zeroed(own)
        return randomised(own, self.settings.design.seed, outcome.content)

    # -- stages ------------------------------------------------------------------------------------------

    def _measure_stage(
        self,
        what: str,
        outcomes: Sequence[Outcome],
        draws: range,
        known: Known,
    ) -> None:
        """Measure all conditions of some images at some draws, or take them from the records."""
        stage = MAIN_STAGE
        count = self._count(what, len(outcomes))
        chunks = _groups(outcomes, lambda o: (o.item.bucket, len(o.names)), self.settings.batch_size)
        for chunk in chunks:
            found = [known.get((stage, outcome.key, draws.start)) for outcome in chunk]
            missing = any(
                record is None or len(record.t) != len(draws) or len(record.losses) != len(outcome.names)
                for record, outcome in zip(found, chunk, strict=True)
            )
            if missing:
                count.begin()
                found = self._measure_chunk(stage, chunk, draws, None)
            for outcome, record in zip(chunk, found, strict=True):
                assert record is not None
                losses, t = numpy.array(record.losses, numpy.float32), numpy.array(record.t, numpy.float32)
                outcome.losses = numpy.concatenate([outcome.losses, losses], axis=1)
                outcome.t = numpy.concatenate([outcome.t, t])
            count.end(len(chunk), measured=missing)

    def _measure_chunk(
        self, stage: str, chunk: Sequence[Outcome], draws: range, names: Sequence[str] | None
    ) -> list[Record | None]:
        """Measure some images of one bucket, under the conditions named (None: all of theirs)."""
        encodings = self.encodings
        if stage == BASE_STAGE and self.base_encodings is not None:
            encodings = self.base_encodings
        subjects = [self._subject(outcome, names or outcome.names, encodings) for outcome in chunk]
        measured = self._forward(subjects, draws)
        records = [
            Record(outcome.key, stage, draws.start, measured.losses[i].tolist(), measured.t[i].tolist())
            for i, outcome in enumerate(chunk)
        ]
        self.records.append(records)
        return list(records)

    def _forward(self, subjects: Sequence[Subject], draws: Sequence[int]) -> Measured:
        self.num_forwards += len(draws) * sum(len(subject.conditions) for subject in subjects)
        measured = measure(self.model, subjects, draws, self.settings.design, autocast=self.autocast)
        for subject, losses in zip(subjects, measured.losses, strict=True):
            if not bool(losses.isfinite().all()):
                reason = f"the model's predictions are not finite in {self.model.dtype}"
                remedy = "measure in another precision: bf16 or fp32"
                problem = Problem("eval.not_finite", reason, file=str(subject.item.path), remedy=remedy)
                raise ModelError(problem)
        return measured

    def _in_rounds(self, outcomes: Sequence[Outcome], known: Known) -> None:
        """A block of draws for every image, then for those whose answer is open, until none is."""
        still_open = list(outcomes)
        for start in range(0, self.settings.num_draws, BLOCK):
            stop = min(start + BLOCK, self.settings.num_draws)
            self._measure_stage(f"images, draws {start + 1} to {stop}", still_open, range(start, stop), known)
            still_open = self._open(outcomes, still_open)
            if not still_open:
                return

    def _open(self, outcomes: Sequence[Outcome], candidates: Sequence[Outcome]) -> list[Outcome]:
        """The images among the candidates that more draws could still decide."""
        found: set[int] = set()
        if self.settings.target_q is not None:
            evidence = [float(e_process(outcome.gains())[-1]) for outcome in outcomes]
            rejected = e_bh(evidence, self.settings.target_q)
            found = {id(outcome) for outcome, yes in zip(outcomes, rejected, strict=True) if yes}
        return [o for o in candidates if id(o) not in found and not self._settled(o)]

    def _settled(self, outcome: Outcome) -> bool:
        gains = outcome.gains()
        if not outcome.item.caption:
            return True  # its own caption is the empty one: there is no difference to find
        if self.settings.target_se is not None:
            known = estimate_over_levels(gains, outcome.t)
            # By the interval, which of few draws is wider than their error says: it too is poorly known.
            if known.high - known.low <= 2 * _NORMAL_REACH * self.settings.target_se:
                return True
        if self.settings.target_q is None:
            return False
        # It is as sure to help as it would have to be to hurt; or the rest of the draws, which at most double
        # the evidence each time, cannot suffice any more. Any reason to stop leaves the evidence valid.
        if float(e_process(-gains)[-1]) >= 1 / self.settings.target_q:
            return True
        left = self.settings.num_draws - len(gains)
        reachable = math.log(max(float(e_process(gains)[-1]), 1e-300)) + left * math.log(2)
        return reachable < math.log(1 / self.settings.target_q)

    # -- base model and edits ----------------------------------------------------------------------------

    def _measure_base(self, outcomes: Sequence[Outcome], known: Known) -> None:
        """The own caption with the network switched off, on the draws that the image had with it."""
        assert self.network is not None
        count = self._count("images without the LoRA", len(outcomes))
        conditions = max([1, *(len(outcome.names) for outcome in outcomes)])
        size = self.settings.batch_size * conditions
        chunks = _groups(outcomes, lambda o: (o.item.bucket, o.num_draws), size)
        with self.network.enabled(False):
            for chunk in chunks:
                found = [known.get((BASE_STAGE, outcome.key, 0)) for outcome in chunk]
                missing = any(
                    record is None or len(record.t) != outcome.num_draws
                    for record, outcome in zip(found, chunk, strict=True)
                )
                if missing:
                    count.begin()
                    found = self._measure_chunk(BASE_STAGE, chunk, range(chunk[0].num_draws), [OWN])
                for outcome, record in zip(chunk, found, strict=True):
                    assert record is not None
                    outcome.base_losses = numpy.array(record.losses[0])
                count.end(len(chunk), measured=missing)

    def _measure_edits(
        self,
        outcomes: Sequence[Outcome],
        edits: Mapping[str, list[Edit]],
        known: Known,
    ) -> None:
        """Each image's changed captions on its first draws."""
        count = self._count("images, changed captions", len(outcomes))
        for outcome in outcomes:
            outcome.edits, missing = list(edits.get(outcome.key, [])), False
            if outcome.edits:
                record = known.get((EDIT_STAGE, outcome.key, 0))
                missing = record is None or len(record.losses) != len(outcome.edits)
                if record is None or missing:
                    count.begin()
                    record = self._edited(outcome)
                    self.records.append([record])
                outcome.edit_losses = numpy.array(record.losses)
            count.end(1, measured=missing)

    def _edited(self, outcome: Outcome, num_draws: int = BLOCK) -> Record:
        rows, t = [], []
        step = max(1, self.settings.batch_size * len(outcome.names))
        latents = self.encodings.latents(outcome.item)
        for start in range(0, len(outcome.edits), step):
            # Nobody asks for these texts a second time, so they are not kept on disk.
            texts = [edit.caption for edit in outcome.edits[start : start + step]]
            subject = Subject(outcome.item, latents, [self.encodings.passing_prompt(text) for text in texts])
            measured = self._forward([subject], range(min(num_draws, outcome.num_draws)))
            rows += measured.losses[0].tolist()
            t = measured.t[0].tolist()
        return Record(outcome.key, EDIT_STAGE, 0, rows, t)

    def _count(self, what: str, total: int) -> _Count:
        return _Count(what, total, self.progress, self.should_stop)


@dataclass(slots=True)
class _Count:
    """Progress of a pass. Images that the records hold take no time and are told only with the next one."""

    what: str
    total: int
    progress: Callable[[str, int, int], None]
    should_stop: Callable[[], bool]
    done: int = 0
    told: int = 0

    def begin(self) -> None:
        """Some images will be measured now. Raises JobStopped if a stop was asked for."""
        if self.should_stop():
            place = f"{self.done} of {self.total} {self.what}"
            raise JobStopped(f"stopped after {place}; the same command goes on from there")
        if self.told < self.done:
            self._tell()

    def end(self, number: int, *, measured: bool) -> None:
        """So many images more are through."""
        self.done += number
        if measured or self.done == self.total:
            self._tell()

    def _tell(self) -> None:
        self.told = self.done
        self.progress(self.what, self.done, self.total)


def _groups(
    outcomes: Sequence[Outcome], kind: Callable[[Outcome], Hashable], size: int
) -> Iterator[list[Outcome]]:
    """Groups of at most `size` outcomes of one kind, in their order."""
    kinds: dict[Hashable, list[Outcome]] = {}
    for outcome in outcomes:
        kinds.setdefault(kind(outcome), []).append(outcome)
    for group in kinds.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]
