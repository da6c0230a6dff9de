"""Measure the captions of a data set, image by image, going on from what an earlier start measured.

An image is measured under its own caption and the conditions beside it, all on the same draws: the empty
caption, the ablation that was asked for, and captions of other images. Where targets are set, draws are spent
in rounds on the images whose answer is still open.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from functools import partial
from sys import intern
from typing import Any, Protocol

import numpy

from toolkit.data.items import MediaItem
from toolkit.errors import JobStopped, ModelError, Problem
from toolkit.evaluation.contrasts import CaptionPool
from toolkit.evaluation.draws import Design
from toolkit.evaluation.draws_layout import BLOCK, LAYOUT
from toolkit.evaluation.edit_stages import EditStages
from toolkit.evaluation.edits import Editor
from toolkit.evaluation.encodings import Encodings, randomised, zeroed
from toolkit.evaluation.measure import Measured, Subject, measure
from toolkit.evaluation.outcomes import ABLATED, BLANK, OTHER, OWN, Outcome, Outcomes, content_of, key_of
from toolkit.evaluation.records import Record, RecordFile
from toolkit.evaluation.statistics import e_bh, e_process, estimate_over_levels
from toolkit.models.base import Architecture
from toolkit.prompt_utils import Conditioning

MAIN_STAGE, BASE_STAGE = "main", "base"
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


Progress = Callable[[str, int, int], None]  # (what is counted, done, total)
Rows = list[list[float]]


class Switchable(Protocol):
    """A network on the model that can be switched off."""

    def enabled(self, on: bool = True) -> AbstractContextManager[None]:
        """A context in which it acts, or does not."""


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

    def run(
        self, items: Sequence[MediaItem], editor: Editor | None = None, *, suggest: bool = False
    ) -> Outcomes:
        """The outcome of every item, in their order; read from the record file, which has to stay there.

        editor: what changes captions, to be measured too; suggest: look for the exchange that fits best.
        Raises JobStopped when asked to stop; what was measured stays in the record file.
        """
        self.records.open()
        edits = None if editor is None else EditStages(editor, self.records, suggest)
        outcomes = Outcomes(items, partial(self._read, edits=edits, base=self.network is not None))
        if self.settings.stops_early:
            self._in_rounds(outcomes)
        else:
            self._measure_images("images", outcomes, range(len(items)), range(self.settings.num_draws))
        if self.network is not None:
            self._measure_base(outcomes, self.network)
        if edits is not None:
            self._measure_edits(outcomes, edits)
        return outcomes

    # -- conditions --------------------------------------------------------------------------------------

    def _begun(self, item: MediaItem) -> Outcome:
        """An image with its conditions and no draws."""
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

    def _num_conditions(self, item: MediaItem) -> int:
        """How many conditions `_begun` gives an image."""
        settings = self.settings
        beside = settings.blank + (settings.ablation in ("zero", "random", "shuffle"))
        return 1 + beside + self.pool.num_others(item.caption, settings.num_others)

    # -- records -----------------------------------------------------------------------------------------

    def _known(self, stage: str, key: str, draws: range, num_conditions: int) -> Record | None:
        """What is recorded of an image at some draws, if it is that."""
        record = self.records.get(stage, key, draws.start)
        if record is None or len(record.t) != len(draws) or len(record.losses) != num_conditions:
            return None
        return record

    def _read(
        self, item: MediaItem, num_draws: int, edits: EditStages | None = None, *, base: bool = False
    ) -> Outcome:
        """An image with what was measured of it: its conditions, and the edits and the base asked for."""
        outcome = self._begun(item)
        for draws in self._rounds(num_draws):
            record = self._known(MAIN_STAGE, outcome.key, draws, len(outcome.names))
            if record is None:
                raise self.records.gone()
            losses, t = numpy.array(record.losses, numpy.float32), numpy.array(record.t, numpy.float32)
            outcome.losses = numpy.concatenate([outcome.losses, losses], axis=1)
            outcome.t = numpy.concatenate([outcome.t, t])
        if base:
            record = self._known(BASE_STAGE, outcome.key, range(num_draws), 1)
            if record is None:
                raise self.records.gone()
            outcome.base_losses = numpy.array(record.losses[0])
        if edits is not None:
            edits.fill(outcome)
        return outcome

    def _rounds(self, num_draws: int) -> Iterator[range]:
        """The first draws of an image as they are measured: all at once, or in blocks."""
        step = BLOCK if self.settings.stops_early else self.settings.num_draws
        return (range(first, min(first + step, num_draws)) for first in range(0, num_draws, step))

    # -- stages ------------------------------------------------------------------------------------------

    def _measure_images(
        self, what: str, outcomes: Outcomes, which: Sequence[int], draws: range
    ) -> None:  # fmt: skip
        """Measure all conditions of some images at some draws, unless they are in the records."""
        items, count = outcomes.items, self._count(what, len(which))
        different = _different(items, which)
        chunks = _groups(
            different, lambda i: (items[i].bucket, self._num_conditions(items[i])), self.settings.batch_size
        )
        for chunk in chunks:
            begun = [self._begun(items[i]) for i in chunk]
            missing = any(self._known(MAIN_STAGE, o.key, draws, len(o.names)) is None for o in begun)
            if missing:
                count.begin()
                self._measure_chunk(MAIN_STAGE, begun, draws, None)
            count.end(len(chunk), measured=missing)
        count.end(len(which) - len(different), measured=False)
        for i in which:
            outcomes.num_draws[i] += len(draws)

    def _measure_chunk(
        self, stage: str, chunk: Sequence[Outcome], draws: range, names: Sequence[str] | None
    ) -> None:
        """Measure and record some images of one bucket, under the conditions named (None: all of theirs)."""
        encodings = self.encodings
        if stage == BASE_STAGE and self.base_encodings is not None:
            encodings = self.base_encodings
        subjects = [self._subject(outcome, names or outcome.names, encodings) for outcome in chunk]
        measured = self._forward(subjects, draws)
        self.records.append(
            [
                Record(outcome.key, stage, draws.start, measured.losses[i].tolist(), measured.t[i].tolist())
                for i, outcome in enumerate(chunk)
            ]
        )

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

    def _in_rounds(self, outcomes: Outcomes) -> None:
        """A block of draws for every image, then for those whose answer is open, until none is."""
        still_open: Sequence[int] = range(len(outcomes))
        evidence = numpy.zeros(len(outcomes))  # that a caption hurts
        for draws in self._rounds(self.settings.num_draws):
            what = f"images, draws {draws.start + 1} to {draws.stop}"
            self._measure_images(what, outcomes, still_open, draws)
            undecided = array("L")
            for i in still_open:
                outcome = self._read(outcomes.items[i], outcomes.num_draws[i])
                evidence[i] = e_process(outcome.gains())[-1]
                if not self._settled(outcome):
                    undecided.append(i)
            if self.settings.target_q is not None:
                found = e_bh(evidence, self.settings.target_q)
                undecided = array("L", (i for i in undecided if not found[i]))
            still_open = undecided
            if not still_open:
                return

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

    def _measure_base(self, outcomes: Outcomes, network: Switchable) -> None:
        """The own caption with the network switched off, on the draws that the image had with it."""
        items, num_draws = outcomes.items, outcomes.num_draws
        count = self._count("images without the LoRA", len(items))
        size = self.settings.batch_size * max(map(self._num_conditions, items), default=1)
        different = _different(items, range(len(items)))
        chunks = _groups(different, lambda i: (items[i].bucket, num_draws[i]), size)
        with network.enabled(False):
            for chunk in chunks:
                begun, draws = [self._begun(items[i]) for i in chunk], range(num_draws[chunk[0]])
                missing = any(self._known(BASE_STAGE, outcome.key, draws, 1) is None for outcome in begun)
                if missing:
                    count.begin()
                    self._measure_chunk(BASE_STAGE, begun, draws, [OWN])
                count.end(len(chunk), measured=missing)
        count.end(len(items) - len(different), measured=False)

    def _measure_edits(self, outcomes: Outcomes, edits: EditStages) -> None:
        """Each image's changed captions."""
        count = self._count("images, changed captions", len(outcomes))

        for item, num_draws in zip(outcomes.items, outcomes.num_draws, strict=True):
            count.begin()  # finding them takes its time too
            count.end(1, measured=edits.fill(self._read(item, num_draws), self._losses))

    def _losses(self, outcome: Outcome, texts: Sequence[str], draws: range) -> tuple[Rows, list[float]]:
        """The losses of an image under some captions (captions, draws), and the levels (draws,)."""
        rows: Rows = []
        t: list[float] = []
        step = max(1, self.settings.batch_size * len(outcome.names))
        latents = self.encodings.latents(outcome.item)
        for start in range(0, len(texts), step):
            # Nobody asks for these texts a second time, so they are not kept on disk.
            told = [self.encodings.passing_prompt(text) for text in texts[start : start + step]]
            measured = self._forward([Subject(outcome.item, latents, told)], draws)
            rows += measured.losses[0].tolist()
            t = measured.t[0].tolist()
        return rows, t

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
        if self.told < self.done and (measured or self.done == self.total):
            self._tell()

    def _tell(self) -> None:
        self.told = self.done
        self.progress(self.what, self.done, self.total)


def _different(items: Sequence[MediaItem], which: Sequence[int]) -> Sequence[int]:
    """Those of some images that are not as an earlier one, with an equal caption."""
    known: set[bytes] = set()
    found = array("L")
    for i in which:
        key = bytes.fromhex(key_of(items[i]))
        if key not in known:
            known.add(key)
            found.append(i)
    return found


def _groups(which: Sequence[int], kind: Callable[[int], Hashable], size: int) -> Iterator[Sequence[int]]:
    """Groups of at most `size` of some numbers, of one kind, in their order."""
    kinds: dict[Hashable, array[int]] = {}
    for each in which:
        kinds.setdefault(kind(each), array("L")).append(each)
    for group in kinds.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]
