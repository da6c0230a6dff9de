"""What a run's validation has found so far, kept in validation.json. Torch-free.

Losses of fixed pictures at fixed draws, held-out ones and as many trained ones (the probe). Two readings are
compared pairwise, picture by picture: d = mean over the columns of log(loss now / loss then), so that each
part of the noise schedule counts alike and exp(d) - 1 is a change in percent. The observation is a group of
pictures that look alike; its band is Student's t. Pairing takes away what pictures and draws differ in from
the start, which is nearly everything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from toolkit.evaluation.statistics import CONFIDENCE, Estimate, Floats, estimate, log_ratios
from toolkit.runs import atomic
from toolkit.runs.layout import SCHEMA_VERSION, check_schema
from toolkit.text import percent

FALSE_ALARMS = 0.05  # share of runs without overfitting that may be warned
LEAST_HARM = 0.01  # a rise that is certain and smaller than this share is no reason to stop
_DIGITS = 9  # a float32 is recovered from so many


@dataclass(frozen=True, slots=True)
class Reading:
    """Losses after a step: held_out and probe (pictures, columns)."""

    step: int
    held_out: Floats
    probe: Floats


@dataclass(frozen=True, slots=True)
class Change:
    """A paired change of losses as a share: 0.02 is 2 % more; with its 95 % band."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, found: Estimate) -> Change:
        """From an estimate of log ratios."""
        return cls(*(_share(value) for value in (found.mean, found.low, found.high)))

    @property
    def text(self) -> str:
        """`-3.1 % (95 %: -4.0 to -2.2 %)`."""
        return f"{percent(self.mean)} (95 %: {percent(self.low)} to {percent(self.high)})"


@dataclass(frozen=True, slots=True)
class Overfit:
    """Evidence that a run has begun to learn its pictures by heart: changes from an earlier reading on.

    p: one-sided, that the loss of held-out pictures has not risen; below `limit` it is taken for certain.
    """

    step: int
    since: int
    held_out: Change
    probe: Change
    p: float
    limit: float


@dataclass
class ValidationRecord:
    """All readings of a run. key: what they depend on; another key, another record.

    units, probe_units: a group number for each picture. planned: how many readings the whole run makes.
    """

    key: dict[str, Any]
    labels: list[str]
    files: list[str]
    units: list[int]
    probe_units: list[int]
    planned: int
    readings: list[Reading] = field(default_factory=list)
    saved: dict[int, str] = field(default_factory=dict)  # step -> file of the run folder

    # -- readings -----------------------------------------------------------------------------------

    @property
    def steps(self) -> list[int]:
        """Steps that were measured, in order."""
        return [reading.step for reading in self.readings]

    def add(self, reading: Reading) -> None:
        """Keep a reading; steps rise. Raises ValueError otherwise."""
        if self.readings and reading.step <= self.readings[-1].step:
            raise ValueError(f"a reading of step {reading.step} after one of step {self.readings[-1].step}")
        # Rounded as the file has them, so that a resumed run compares the same numbers.
        held_out, probe = (_array(_matrix(values)) for values in (reading.held_out, reading.probe))
        self.readings.append(Reading(reading.step, held_out, probe))

    def forget_after(self, step: int) -> None:
        """Drop what a run that goes on from `step` will do again."""
        self.readings = [reading for reading in self.readings if reading.step <= step]
        self.saved = {at: name for at, name in self.saved.items() if at <= step}

    @property
    def baseline(self) -> Reading:
        """What the others are compared with: the reading of step 0, or the first there is."""
        return self.readings[0]

    @property
    def best(self) -> Reading:
        """The reading with the lowest loss of held-out pictures, each level counting alike."""
        return min(self.readings, key=self._level)

    @property
    def best_saved(self) -> int | None:
        """Of the steps that were both measured and saved the best one."""
        saved = [reading for reading in self.readings if reading.step in self.saved]
        if not saved:
            return None
        return min(saved, key=self._level).step

    # -- comparing ----------------------------------------------------------------------------------

    def _level(self, reading: Reading) -> float:
        """The mean log of the held-out loss, by which readings are ranked."""
        return float(numpy.log(reading.held_out).mean())

    def _held_out(self, now: Reading, then: Reading) -> Estimate:
        return paired(now.held_out, then.held_out, self.units)

    def _probe(self, now: Reading, then: Reading) -> Estimate:
        return paired(now.probe, then.probe, self.probe_units)

    def summary(self, reading: Reading) -> dict[str, Any]:
        """The numbers of a reading for metrics.jsonl: losses, changes since the baseline, gap, by level."""
        held_out, probe = self._held_out(reading, self.baseline), self._probe(reading, self.baseline)
        gap = between(held_out, probe, len(set(self.units)), len(set(self.probe_units)))
        row: dict[str, Any] = {
            "val_loss": _round(reading.held_out.mean()),
            "probe_loss": _round(reading.probe.mean()),
        }
        if reading is not self.baseline:
            for name, found in (("val_change", held_out), ("probe_change", probe), ("gap", gap)):
                change = Change.of(found)
                row |= {name: _round(change.mean), f"{name}_low": _round(change.low),
                        f"{name}_high": _round(change.high)}  # fmt: skip
        row["val_by_t"] = [_round(value) for value in reading.held_out.mean(axis=0)]
        row["probe_by_t"] = [_round(value) for value in reading.probe.mean(axis=0)]
        return row

    def changes_by_level(self, reading: Reading) -> list[Change]:
        """The change of the held-out loss since the baseline in each column."""
        first = self.baseline.held_out
        return [
            Change.of(paired(reading.held_out[:, [column]], first[:, [column]], self.units))
            for column in range(first.shape[1])
        ]

    # -- judging ------------------------------------------------------------------------------------

    @property
    def limit(self) -> float:
        """How small p must be: any two readings may be the ones compared, so each pair gets its share.

        By Bonferroni at most FALSE_ALARMS of the runs whose held-out loss never rises are warned, whichever
        reading looks best.
        """
        count = max(self.planned, len(self.readings), 2)
        return FALSE_ALARMS / (count * (count - 1) / 2)

    def overfit_at(self, index: int) -> Overfit | None:
        """Whether reading number `index` shows overfitting: since the best reading before it the trained
        pictures' loss fell for certain while that of held-out ones rose, for certain and noticeably.
        """
        now, before = self.readings[index], self.readings[:index]
        if not before:
            return None
        then = min(before, key=self._level)
        held_out, probe = self._held_out(now, then), self._probe(now, then)
        p = chance_of_no_rise(held_out, len(set(self.units)))
        worse = p <= self.limit and math.expm1(held_out.mean) >= LEAST_HARM
        if not worse or probe.high >= 0:
            return None
        return Overfit(now.step, then.step, Change.of(held_out), Change.of(probe), p, self.limit)

    @property
    def overfit(self) -> Overfit | None:
        """The first reading that shows it."""
        found = (self.overfit_at(index) for index in range(len(self.readings)))
        return next((each for each in found if each is not None), None)

    # -- the file -----------------------------------------------------------------------------------

    def write(self, path: Path) -> None:
        """Write validation.json. Raises RunError if the disk refuses."""
        overfit = self.overfit
        content = {
            "schema_version": SCHEMA_VERSION,
            "key": self.key, "levels": self.labels, "files": self.files,
            "units": self.units, "probe_units": self.probe_units, "planned": self.planned,
            "best_step": self.best.step if self.readings else None,
            "best_saved_step": self.best_saved,
            "overfit": None if overfit is None else _as_json(overfit),
            "saved": {str(step): name for step, name in self.saved.items()},
            "readings": [
                {"step": reading.step, **self.summary(reading), "held_out": _matrix(reading.held_out),
                 "probe": _matrix(reading.probe)}
                for reading in self.readings
            ],
        }  # fmt: skip
        atomic.write_json(path, content, indent=None)

    def continued(self, path: Path) -> str | None:
        """Take over the readings of the file at `path`, if it is of this very validation.

        Returns why not, if there is a file that is not.
        """
        before = read_validation(path)
        if before is None:
            return None
        if before.key != self.key:
            changed = [name for name in self.key if before.key.get(name) != self.key[name]]
            return f"{', '.join(changed) or 'the grid'} changed"
        self.readings, self.saved = before.readings, before.saved
        return None


def read_validation(path: Path) -> ValidationRecord | None:
    """The record at `path`, or None if there is none that can be read.

    Raises RunError if a newer program wrote it.
    """
    try:
        content = json.loads(atomic.read_bytes(path))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    check_schema(content.get("schema_version"), path)
    try:
        return ValidationRecord(
            content["key"], content["levels"], content["files"], content["units"], content["probe_units"],
            content["planned"],
            [Reading(each["step"], _array(each["held_out"]), _array(each["probe"]))
             for each in content["readings"]],
            {int(step): name for step, name in content["saved"].items()},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None


def paired(now: Floats, then: Floats, units: Sequence[int]) -> Estimate:
    """The mean over pictures of log(now / then), each a mean over columns, and how sure it is.

    now, then (pictures, columns); units: pictures of one number are one observation.
    """
    return estimate(log_ratios(now, then).mean(axis=1), _members(units))


def _members(units: Sequence[int]) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for index, unit in enumerate(units):
        found.setdefault(unit, []).append(index)
    return list(found.values())


def chance_of_no_rise(found: Estimate, num_units: int) -> float:
    """p of the one-sided t-test that a mean log ratio is not above 0."""
    from scipy.stats import t as student

    if num_units < 2 or not math.isfinite(found.se):
        return 1.0
    if found.se == 0:
        return 0.0 if found.mean > 0 else 1.0
    return float(student.sf(found.mean / found.se, num_units - 1))


def between(first: Estimate, second: Estimate, num_first: int, num_second: int) -> Estimate:
    """The difference of two independent means with Welch's band (1947)."""
    from scipy.stats import t as student

    mean, parts = first.mean - second.mean, (first.se**2, second.se**2)
    se = math.sqrt(sum(parts))
    if not math.isfinite(se) or se == 0:
        reach = 0.0 if se == 0 else math.inf
        return Estimate(mean, se, mean - reach, mean + reach)
    freedom = se**4 / (parts[0] ** 2 / (num_first - 1) + parts[1] ** 2 / (num_second - 1))
    reach = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * se
    return Estimate(mean, se, mean - reach, mean + reach)


def overfit_note(found: Overfit, num_pictures: int) -> str:
    """The warning, with what it rests on."""
    return (
        f"overfitting: since step {found.since} the loss of {num_pictures} held-out pictures changed by "
        f"{found.held_out.text}, that of trained ones by {found.probe.text}; p = {found.p:.1g}, taken for "
        f"certain below {found.limit:.1g}"
    )


def _as_json(found: Overfit) -> dict[str, Any]:
    held_out, probe = found.held_out, found.probe
    return {
        "step": found.step, "since": found.since, "p": found.p, "limit": found.limit,
        "held_out": [held_out.mean, held_out.low, held_out.high],
        "probe": [probe.mean, probe.low, probe.high],
    }  # fmt: skip


def _share(log_ratio: float) -> float:
    """exp(x) - 1 of a log ratio that may be infinite."""
    return math.expm1(log_ratio) if log_ratio < 700 else math.inf


def _round(value: float) -> float:
    return float(f"{value:.7g}")


def _matrix(values: Floats) -> list[list[float]]:
    return [[float(f"{value:.{_DIGITS}g}") for value in row] for row in values]


def _array(rows: list[list[float]]) -> Floats:
    return numpy.asarray(rows, dtype=numpy.float64)
