"""Statistics against scipy, closed forms and simulation."""

from __future__ import annotations

import itertools
import math

import numpy
import pytest
import scipy.stats

from toolkit.evaluation.draws_layout import draws_of_noises, van_der_corput
from toolkit.evaluation.statistics import (
    anytime_p,
    auroc,
    bootstrap_interval,
    conformal_p,
    e_bh,
    e_process,
    e_q_values,
    estimate,
    estimate_over_levels,
    log_ratios,
    q_values,
    rank_among,
    signed_rank_p,
)


def rng(seed: int = 0) -> numpy.random.Generator:
    return numpy.random.default_rng(seed)


def test_log_ratios_are_positive_where_the_own_caption_is_better():
    ratios = log_ratios(numpy.array([2.0, 1.0, 0.0]), numpy.array([1.0, 2.0, 0.0]))
    assert ratios == pytest.approx([math.log(2), -math.log(2), 0.0])


def test_estimate_is_students_interval_over_the_units():
    values = rng().normal(0.3, 1, 12)
    found = estimate(values)
    wanted = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    units = [[0, 2], [1, 3], [4, 6], [5, 7], [8, 10], [9, 11]]
    paired = estimate(values, units)
    means = [values[unit].mean() for unit in units]
    assert paired.se == pytest.approx(scipy.stats.sem(means))
    assert paired.mean == pytest.approx(values.mean())
    assert estimate([1.0, 3.0], [[0, 1]]).se == math.inf


def test_intervals_cover_the_truth():
    draws = rng(1)
    covered = [
        found.low <= 0.5 <= found.high for found in (estimate(draws.normal(0.5, 2, 8)) for _ in range(2000))
    ]
    # Standard error of the share: 0.005.
    assert numpy.mean(covered) == pytest.approx(0.95, abs=0.02)


def levels_of(rotation: float, count: int) -> numpy.ndarray:
    return 1.0 - (numpy.array([van_der_corput(draw) for draw in range(count)]) + rotation) % 1.0


@pytest.mark.parametrize("count", [8, 16, 32])
def test_how_values_change_with_the_level_is_no_error(count):
    """Noise of 0.1 around a curve over the levels that is ten times as high."""
    draws, truth = rng(4), 2 / math.pi
    means, found = [], []
    for _ in range(1000):
        t = levels_of(draws.random(), count)
        values = numpy.sin(math.pi * t) + draws.normal(0, 0.1, count)
        means.append(values.mean())
        found.append(estimate_over_levels(values, t))
    true = numpy.std(means, ddof=1)
    reported = math.sqrt(numpy.mean([each.se**2 for each in found]))
    # Neighbours of few levels still differ by the curve's slope, in the mean square (pi / sqrt 2)^2.
    slope = (math.pi / math.sqrt(2) / count) ** 2 / 2
    assert reported == pytest.approx(math.sqrt((0.1**2 + slope) / count), rel=0.1)
    assert true == pytest.approx(0.1 / math.sqrt(count), rel=0.1)
    assert numpy.mean([each.low <= truth <= each.high for each in found]) >= 0.94
    assert [each.mean for each in found] == pytest.approx(means)


def test_the_mean_square_successive_difference_by_hand():
    found = estimate_over_levels([1.0, 5.0, 2.0], [0.1, 0.9, 0.5])  # in order: 1, 2, 5
    assert found.se == pytest.approx(math.sqrt((1 + 9) / 4 / 3))
    reach = scipy.stats.t.ppf(0.975, 8 / 5) * found.se
    assert (found.low, found.high) == pytest.approx((8 / 3 - reach, 8 / 3 + reach))


def test_at_one_level_the_draws_of_a_noise_are_one_observation():
    values = rng(5).normal(0, 1, 8)
    assert estimate_over_levels(values, [0.5] * 8) == estimate(values, draws_of_noises(8))
    assert estimate_over_levels([1.0], [0.5]).se == math.inf


def test_signed_rank_p_by_counting_every_pattern_of_signs():
    values = numpy.array([-3.0, -1.0, 2.0, -4.0, -0.5])
    ranks = scipy.stats.rankdata(abs(values))
    observed = ranks[values > 0].sum()
    sums = [ranks[numpy.array(signs) > 0].sum() for signs in itertools.product((-1, 1), repeat=len(values))]
    assert signed_rank_p(values) == pytest.approx(numpy.mean(numpy.array(sums) <= observed))


@pytest.mark.parametrize("count", [4, 8, 16])
def test_the_smallest_p_of_few_draws(count):
    assert signed_rank_p(-numpy.arange(1, count + 1)) == pytest.approx(2.0**-count)
    assert signed_rank_p(numpy.arange(1, count + 1)) == pytest.approx(1.0)
    assert signed_rank_p([0.0, 0.0]) == 1.0


def test_q_values_find_what_benjamini_and_hochbergs_steps_find():
    p = rng(2).uniform(size=50) ** 3
    q = numpy.array(q_values(p))
    for rate in (0.01, 0.05, 0.1, 0.3):
        ordered = numpy.sort(p)
        passing = numpy.nonzero(ordered <= rate * numpy.arange(1, 51) / 50)[0]
        limit = ordered[passing.max()] if len(passing) else -1.0
        assert numpy.array_equal(q <= rate, p <= limit)
    assert q_values([]) == []


def test_e_bh_is_the_largest_set_that_its_rule_allows():
    values = numpy.exp(rng(3).normal(1, 2, 30))
    for rate in (0.05, 0.1, 0.5):
        found = numpy.array(e_bh(values, rate))
        ordered = numpy.sort(values)[::-1]
        allowed = [k for k in range(1, 31) if ordered[k - 1] >= 30 / (k * rate)]
        assert found.sum() == max(allowed, default=0)
        assert not found.any() or values[found].min() > values[~found].max()
        assert found.tolist() == [q <= rate + 1e-12 for q in e_q_values(values)]


def test_one_e_value_is_rejected_from_one_over_the_rate_on():
    assert e_bh([10.0], 0.1) == [True]
    assert e_bh([9.99], 0.1) == [False]


def test_the_e_process_has_mean_one_under_the_null_by_counting_every_pattern_of_signs():
    sizes = numpy.array([0.3, 1.0, 0.2, 2.0, 0.7])
    finals = [e_process(numpy.array(signs) * sizes) for signs in itertools.product((-1, 1), repeat=5)]
    assert numpy.mean(finals, axis=0) == pytest.approx(numpy.ones(5))
    assert min(float(final.min()) for final in finals) >= 0


def test_the_e_process_grows_where_the_caption_hurts():
    hurting = e_process(numpy.full(16, -0.1))
    assert (numpy.diff(hurting) > 0).all()
    assert hurting[-1] > 100
    assert e_process(numpy.full(16, 0.1))[-1] < 0.5
    assert e_process(numpy.zeros(4)) == pytest.approx(numpy.ones(4))
    assert anytime_p([]) == 1.0


def test_p_stays_valid_under_the_null_although_drawing_stops_when_it_likes_what_it_sees():
    """Differences of two exchangeable conditions with heavy tails and a scale of its own at each draw."""
    draws, count = rng(4), 4000
    found = []
    for _ in range(count):
        scales = numpy.exp(draws.normal(0, 1, 32))
        differences = draws.standard_t(3, 32) * scales
        wealth = e_process(differences)
        # Stop at the first draw where it looks good, else go on to the end.
        good = numpy.nonzero(wealth >= 10)[0]
        found.append(anytime_p(differences[: good[0] + 1] if len(good) else differences))
    for level in (0.01, 0.05, 0.10):
        share, error = numpy.mean(numpy.array(found) <= level), math.sqrt(level * (1 - level) / count)
        assert share <= level + 3 * error
    # A p that is looked at over and over without being made for it does not pass this.
    peeked = []
    for _ in range(500):
        differences = draws.standard_t(3, 32)
        peeked.append(min(signed_rank_p(differences[:n]) for n in range(4, 33, 4)))
    assert numpy.mean(numpy.array(peeked) <= 0.05) > 0.08


def test_the_share_of_false_discoveries_is_kept():
    """90 captions that do nothing and 10 that hurt, 16 draws each."""
    draws, false_shares, power = rng(5), [], []
    for _ in range(40):
        means = numpy.array([0.0] * 90 + [-1.0] * 10)
        values = draws.normal(means[:, None], 0.5, (100, 16))
        flagged = numpy.array(q_values([signed_rank_p(row) for row in values])) <= 0.1
        false_shares.append(flagged[:90].sum() / max(1, flagged.sum()))
        power.append(flagged[90:].mean())
    error = numpy.std(false_shares) / math.sqrt(len(false_shares))
    assert numpy.mean(false_shares) <= 0.1 + 2 * error
    assert numpy.mean(power) >= 0.9


def test_ranks_and_their_p():
    assert rank_among(0.0, [0.1, 0.2, -0.3]) == 2
    assert rank_among(0.0, [0.0]) == 2
    assert conformal_p(1, 7) == pytest.approx(1 / 8)


def test_auroc_is_mann_whitneys_share():
    draws = rng(6)
    scores = draws.integers(0, 5, 60).astype(float)
    labels = draws.integers(0, 2, 60).astype(bool)
    wanted = scipy.stats.mannwhitneyu(scores[labels], scores[~labels]).statistic
    assert auroc(scores, labels) == pytest.approx(wanted / (labels.sum() * (~labels).sum()))
    assert math.isnan(auroc([1.0], [True]))


def test_the_bootstrap_interval_is_near_students_and_repeats_itself():
    values = rng(7).normal(1, 2, 200)
    found = bootstrap_interval(values, seed=1)
    wanted = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.06)
    assert found == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=-1) != found  # any seed of a design is one here
    assert bootstrap_interval([2.0, 2.0]).low == 2.0


@pytest.mark.parametrize("count", [3, 5, 8])
def test_the_bootstrap_interval_of_few_values_does_not_hang_on_their_last_bits(count):
    values, noise = rng(1).normal(1, 0.5, count), rng(2)
    found = bootstrap_interval(values)
    for _ in range(5):
        again = bootstrap_interval(values * (1 + noise.normal(0, 1e-7, count)))
        assert (again.low, again.high) == pytest.approx((found.low, found.high), rel=1e-4)
    assert bootstrap_interval([1.0, 1.0 + 1e-15]).low == pytest.approx(1.0)


def test_the_bootstrap_of_ten_thousand_images_needs_little_memory():
    import tracemalloc

    values = rng(8).normal(0, 1, 10_000)
    tracemalloc.start()
    bootstrap_interval(values, resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # a table of the jackknife alone would be 800 MB
