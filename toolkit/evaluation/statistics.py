"""What a set of paired differences says, and how sure it is. Torch-free.

The unit is an image; its draws are nested in it. A difference d is log loss(other) - log loss(own): positive
where the own caption was the better one. The log keeps draws of very different noise levels on one scale;
without it the noisy half of the schedule decides every mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from toolkit.evaluation.draws_layout import draws_of_noises
from toolkit.seeding import keyed_seed

Floats = NDArray[numpy.float64]

CONFIDENCE = 0.95
_NUMBERS_AT_ONCE = 1 << 20  # of a bootstrap's resamples
# Bets of the e-process, in units of the differences' own size: it need not be known which suits.
_BETS = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over draws with its standard error and 95 % interval; both infinite for fewer than two units."""

    mean: float
    se: float
    low: float
    high: float


def log_ratios(other: Floats, own: Floats) -> Floats:
    """log other - log own, elementwise; 0 where both are 0, and a loss of 0 counts as the smallest number."""
    tiny = numpy.finfo(numpy.float64).tiny
    return numpy.log(numpy.maximum(other, tiny)) - numpy.log(numpy.maximum(own, tiny))


def estimate(values: Sequence[float] | Floats, units: Sequence[Sequence[int]] | None = None) -> Estimate:
    """The mean of some draws and how well it is known.

    units: indices of the draws that share a noise level and a noise up to its sign; their means are taken as
    the independent observations (None: each draw is one). Student's t, since there are few.
    """
    data = numpy.asarray(values, dtype=numpy.float64)
    groups = [list(unit) for unit in units] if units is not None else [[i] for i in range(len(data))]
    means = numpy.array([data[group].mean() for group in groups])
    if len(means) < 2:
        return _within(float(data.mean()), math.inf, 1)
    return _within(float(data.mean()), float(means.std(ddof=1)) / math.sqrt(len(means)), len(means) - 1)


def estimate_over_levels(values: Sequence[float] | Floats, levels: Sequence[float] | Floats) -> Estimate:
    """The mean of an image's draws (D,), whose noise levels (D,) are spread evenly, and how well it is known.

    How the values change from level to level is no error: another such set of levels changes the same way.
    What is left is told by neighbours in order of their levels, the mean square successive difference (von
    Neumann, Kent, Bellinson and Hart 1941, Annals of Mathematical Statistics 12; for systematic samples
    Wolter, Introduction to Variance Estimation, 2007, section 8.2). A difference of neighbours still holds
    some of the change, so the error is rather too large. Student's t with the degrees of freedom of the
    estimator for normal values, 2 (D - 1)^2 / (3 D - 4). At one and the same level: see `estimate`, with
    the draws of a noise as units.
    """
    data, order = numpy.asarray(values, dtype=numpy.float64), numpy.argsort(levels, kind="stable")
    count = len(data)
    if count < 2 or levels[order[0]] == levels[order[-1]]:
        return estimate(data, draws_of_noises(count))
    variance = float((numpy.diff(data[order]) ** 2).sum()) / (2 * (count - 1))
    return _within(float(data.mean()), math.sqrt(variance / count), 2 * (count - 1) ** 2 / (3 * count - 4))


def _within(mean: float, se: float, freedom: float) -> Estimate:
    """An estimate with its interval by Student's t."""
    from scipy.stats import t as student

    if not math.isfinite(se):
        return Estimate(mean, math.inf, -math.inf, math.inf)
    reach = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * se
    return Estimate(mean, se, mean - reach, mean + reach)


def signed_rank_p(differences: Sequence[float] | Floats) -> float:
    """p of Wilcoxon's signed-rank test (1945) that the differences are symmetric about 0 or above it.

    Small where they are below 0: where the other condition was better. Exact; differences of 0 say nothing.
    The smallest p of n draws is 2^-n, so few draws can never convince among many images.
    """
    from scipy.stats import wilcoxon

    data = numpy.asarray(differences, dtype=numpy.float64)
    data = data[data != 0]
    if not len(data):
        return 1.0
    method = "exact" if len(data) <= 50 else "approx"
    return float(wilcoxon(data, alternative="less", method=method).pvalue)


def q_values(p_values: Sequence[float] | Floats) -> list[float]:
    """Smallest false discovery rate at which each would be found (Benjamini and Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    if not len(p_values):
        return []
    return [float(q) for q in false_discovery_control(numpy.asarray(p_values), method="bh")]


def e_process(differences: Sequence[float] | Floats) -> Floats:
    """Evidence after each draw that the differences are below 0, as e-values (D,).

    Under the null each difference is symmetric about 0 given the ones before (two conditions that might as
    well be exchanged), so 1 + tanh(b x) has mean 1 for x = -d and any b that depends on |x| and the past; the
    products are test martingales and so is their mean over several b (Vovk and Wang, arXiv:1912.06116). By
    Ville's inequality P(some e >= 1/a) <= a, whenever one stops.
    """
    x = -numpy.asarray(differences, dtype=numpy.float64)
    if not len(x):
        return numpy.zeros(0)
    size = numpy.sqrt(numpy.cumsum(x**2) / numpy.arange(1, len(x) + 1))
    relative = numpy.divide(x, size, out=numpy.zeros_like(x), where=size > 0)
    wealth = [numpy.cumprod(1 + numpy.tanh(bet * relative)) for bet in _BETS]
    return numpy.asarray(numpy.mean(wealth, axis=0))


def anytime_p(differences: Sequence[float] | Floats) -> float:
    """p that stays valid when drawing stops as soon as the data say so: 1 / the largest e-value so far."""
    evidence = e_process(differences)
    return min(1.0, 1.0 / float(evidence.max())) if len(evidence) else 1.0


def e_q_values(e_values: Sequence[float] | Floats) -> list[float]:
    """Smallest false discovery rate at which e-BH rejects each: 1/e is a p-value, and e-BH is BH on it."""
    values = numpy.asarray(e_values, dtype=numpy.float64)
    tiny = numpy.finfo(numpy.float64).tiny
    return q_values(numpy.minimum(1.0, 1.0 / numpy.maximum(values, tiny)))


def e_bh(e_values: Sequence[float] | Floats, rate: float) -> list[bool]:
    """Which hypotheses e-BH rejects at a false discovery rate (Wang and Ramdas, arXiv:2009.02824).

    Valid under any dependence. The k largest go, for the largest k whose k-th is at least n / (k rate).
    """
    values = numpy.asarray(e_values, dtype=numpy.float64)
    order = numpy.argsort(-values, kind="stable")
    ranks = numpy.arange(1, len(values) + 1)
    enough = values[order] * ranks * rate >= len(values)
    count = int(ranks[enough].max()) if enough.any() else 0
    rejected = numpy.zeros(len(values), dtype=bool)
    rejected[order[:count]] = True
    return [bool(each) for each in rejected]


def rank_among(own: float, others: Sequence[float]) -> int:
    """The place of the own caption among all by loss: 1 is the best; ties count against it."""
    return 1 + sum(other <= own for other in others)


def conformal_p(rank: int, num_others: int) -> float:
    """p that the own caption is like any other of the data set: small if it ranks first among many."""
    return rank / (num_others + 1)


def auroc(scores: Sequence[float] | Floats, labels: Sequence[bool] | NDArray[numpy.bool_]) -> float:
    """The chance that a positive's score exceeds a negative's, ties half; nan if there are none of one."""
    from scipy.stats import rankdata

    values, positive = numpy.asarray(scores, dtype=numpy.float64), numpy.asarray(labels, dtype=bool)
    count, rest = int(positive.sum()), int((~positive).sum())
    if not count or not rest:
        return math.nan
    ranks = rankdata(values)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * rest))


def bootstrap_interval(values: Sequence[float] | Floats, *, seed: int = 0, resamples: int = 2000) -> Estimate:
    """The mean over images with a bootstrap interval (BCa, Efron 1987); of no width where all are equal."""
    from scipy.stats import bootstrap

    data = numpy.asarray(values, dtype=numpy.float64)
    mean = float(data.mean()) if len(data) else math.nan
    # On a grid whose sums are exact: many resamples of few values are those values in another order, and
    # whether their mean is below that of the data, which BCa counts, must not hang on how sums are rounded.
    grid = 2.0 ** (math.frexp(float(numpy.abs(data).max(initial=0.0)))[1] - 30)
    data = numpy.round(data / grid) * grid
    if len(data) < 2 or not numpy.ptp(data):
        return Estimate(mean, 0.0 if len(data) > 1 else math.inf, mean, mean)
    found = bootstrap(
        (data,), numpy.mean, n_resamples=resamples, confidence_level=CONFIDENCE, method="BCa",
        rng=numpy.random.default_rng(keyed_seed("bootstrap", seed)),
        batch=max(1, _NUMBERS_AT_ONCE // len(data)),
    )  # fmt: skip
    low, high = (float(bound) for bound in found.confidence_interval)
    return Estimate(mean, float(found.standard_error), low, high)
