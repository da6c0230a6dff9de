"""What is said of readings: bands that cover the truth, alarms seldom false, a file that comes back."""

from __future__ import annotations

import math

import numpy
import pytest
from scipy import stats

from toolkit.errors import RunError
from toolkit.evaluation.statistics import Estimate
from toolkit.evaluation.validation_record import (
    FALSE_ALARMS,
    Change,
    Reading,
    ValidationRecord,
    between,
    chance_of_no_rise,
    overfit_note,
    paired,
    read_validation,
)


def record_of(num: int = 16, planned: int = 6, key: str = "a") -> ValidationRecord:
    return ValidationRecord(
        {"grid": key}, ["low", "high"], [f"{i}.png" for i in range(num)],
        list(range(num)), list(range(num)), planned,
    )  # fmt: skip


def losses(rng: numpy.random.Generator, num: int = 16) -> numpy.ndarray:
    """Pictures differ tenfold and noise levels hundredfold, as real ones do."""
    return numpy.exp(rng.normal(0, 1, (num, 1))) * numpy.array([[0.8, 0.008]]) * rng.gamma(9, 1 / 9, (num, 2))


def run_of(changes: list[tuple[float, float]], seed: int = 0, spread: float = 0.01) -> ValidationRecord:
    """A record whose held-out and probe losses change by these mean log ratios, with a spread of pictures."""
    rng = numpy.random.default_rng(seed)
    held, probe = losses(rng), losses(rng)
    record = record_of(planned=len(changes))
    for index, (up, down) in enumerate(changes):
        noises = [numpy.exp(shift + rng.normal(0, spread if index else 0, (16, 1))) for shift in (up, down)]
        record.add(Reading(50 * index, held * noises[0], probe * noises[1]))
    return record


# -- bands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [8, 16, 32])
def test_the_band_covers_the_truth(num):
    """Pictures answer to training each in its own way, some much more; draws add noise of their own."""
    rng, truth, covered, trials = numpy.random.default_rng(num), -0.03, 0, 2000
    for _ in range(trials):
        first = losses(rng, num)
        effect = truth + 0.04 * rng.laplace(size=(num, 1)) + 0.02 * rng.normal(size=(num, 2))
        found = paired(first * numpy.exp(effect), first, range(num))
        covered += found.low <= truth <= found.high
    # Three standard errors of a share of 0.95, and Student's t errs to the wide side for heavy tails.
    assert 0.935 <= covered / trials <= 0.975


def test_pairing_is_what_makes_the_band_narrow():
    record = run_of([(0, 0), (-0.03, -0.03)])
    change = Change.of(paired(record.readings[1].held_out, record.readings[0].held_out, record.units))
    means = [reading.held_out.mean(axis=1) for reading in record.readings]
    unpaired = stats.ttest_ind(means[1], means[0]).confidence_interval()
    assert change.high - change.low < 0.02 < (unpaired.high - unpaired.low) / means[0].mean() / 20
    assert change.high < 0


def test_the_band_and_p_are_those_of_scipy():
    rng = numpy.random.default_rng(3)
    first = losses(rng)
    now = first * numpy.exp(rng.normal(0.01, 0.03, first.shape))
    found = paired(now, first, range(16))
    reference = stats.ttest_1samp(numpy.log(now / first).mean(axis=1), 0, alternative="greater")
    assert chance_of_no_rise(found, 16) == pytest.approx(reference.pvalue)
    both = stats.ttest_1samp(numpy.log(now / first).mean(axis=1), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((both.low, both.high))


def test_pictures_that_look_alike_are_one_observation():
    rng = numpy.random.default_rng(4)
    first = losses(rng, 8)
    now = first * numpy.exp(rng.normal(0.01, 0.03, first.shape))
    single = paired(now, first, range(8))
    doubled = paired(numpy.repeat(now, 2, 0), numpy.repeat(first, 2, 0), [i // 2 for i in range(16)])
    assert (doubled.low, doubled.high) == pytest.approx((single.low, single.high))


def test_the_gap_has_welchs_band():
    rng = numpy.random.default_rng(5)
    one, two = rng.normal(0.02, 0.03, 16), rng.normal(-0.05, 0.08, 9)
    reference = stats.ttest_ind(one, two, equal_var=False).confidence_interval()
    first, second = (Estimate(x.mean(), x.std(ddof=1) / math.sqrt(len(x)), 0, 0) for x in (one, two))
    found = between(first, second, 16, 9)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))


# -- overfitting -----------------------------------------------------------------------------------------


def test_a_run_that_overfits_is_flagged_with_its_evidence():
    record = run_of([(0, 0), (-0.1, -0.12), (-0.12, -0.2), (-0.08, -0.3), (-0.02, -0.5)])
    found = record.overfit
    assert record.best.step == 100
    assert (found.step, found.since) == (150, 100)
    assert found.held_out.low > 0 > found.probe.high
    assert found.p < found.limit == FALSE_ALARMS / 10
    text = overfit_note(found, 16)
    assert "since step 100" in text
    assert "16 held-out pictures" in text


def test_overfitting_from_the_first_step_is_measured_against_it():
    assert run_of([(0, 0), (0.03, -0.1)]).overfit.since == 0


@pytest.mark.parametrize(
    "changes",
    [
        [(0, 0), (-0.1, -0.12), (-0.12, -0.2), (-0.13, -0.3)],  # the gap widens, yet nothing gets worse
        [(0, 0), (-0.1, -0.1), (0.2, 0.3)],  # everything gets worse: something else is wrong
        [(0, 0), (-0.1, -0.12), (-0.097, -0.2)],  # 0.3 % is no harm, however certain
    ],
    ids=["gap", "diverges", "tiny"],
)
def test_others_are_not(changes):
    assert run_of(changes, spread=0.001).overfit is None


def test_false_alarms_are_as_seldom_as_promised():
    """Held-out pictures go up and down by chance around no change while trained ones improve."""
    alarms, trials = 0, 400
    for seed in range(trials):
        alarms += run_of([(0, -0.1 * i) for i in range(8)], seed=seed, spread=0.1).overfit is not None
    assert alarms / trials <= FALSE_ALARMS


# -- the record ------------------------------------------------------------------------------------------


def test_the_file_brings_everything_back(tmp_path):
    record = run_of([(0, 0), (-0.1, -0.12), (0.05, -0.2)])
    record.saved = {50: "run_000000050.safetensors", 100: "run.safetensors"}
    record.write(tmp_path / "validation.json")
    again = read_validation(tmp_path / "validation.json")
    assert [again.summary(reading) for reading in again.readings] == [
        record.summary(reading) for reading in record.readings
    ]
    assert (again.best_saved, again.overfit) == (50, record.overfit)
    for one, two in zip(again.readings, record.readings, strict=True):
        assert (one.held_out == two.held_out).all()


def test_a_resumed_run_forgets_what_comes_again(tmp_path):
    record = run_of([(0, 0), (-0.1, -0.12), (0.05, -0.2)])
    record.saved = {50: "run_000000050.safetensors", 100: "run.safetensors"}
    record.write(tmp_path / "validation.json")
    same, other = record_of(), record_of(key="b")
    assert same.continued(tmp_path / "validation.json") is None
    same.forget_after(70)
    assert (same.steps, same.saved) == ([0, 50], {50: "run_000000050.safetensors"})
    assert other.continued(tmp_path / "validation.json") == "grid changed"
    assert other.readings == []


def test_a_torn_file_is_none_and_a_newer_one_is_refused(tmp_path):
    path = tmp_path / "validation.json"
    assert read_validation(path) is None
    path.write_text('{"schema_version": 1, "rea')
    assert read_validation(path) is None
    path.write_text('{"schema_version": 99}')
    with pytest.raises(RunError, match="newer"):
        read_validation(path)


def test_changes_by_level_are_told_apart():
    record = record_of()
    first = losses(numpy.random.default_rng(1))
    record.add(Reading(0, first, first))
    record.add(Reading(10, first * [[1.1, 0.9]], first))
    low, high = record.changes_by_level(record.readings[1])
    assert (low.mean, high.mean) == (pytest.approx(0.1), pytest.approx(-0.1))
