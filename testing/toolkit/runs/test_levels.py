"""Losses by noise level, against the plain way to gather them."""

from __future__ import annotations

import random

import pytest

from toolkit.runs.levels import by_level, mean_by_level


def test_each_loss_falls_into_its_tenth():
    rng = random.Random(0)
    levels, losses = [rng.random() for _ in range(500)], [rng.random() for _ in range(500)]
    found = by_level(levels, losses)
    for place in range(10):
        own = [loss for t, loss in zip(levels, losses, strict=True) if place / 10 <= t < (place + 1) / 10]
        assert found["t_counts"][place] == len(own)
        assert found["loss_by_t"][place] == pytest.approx(sum(own) / len(own), rel=1e-5)


def test_pure_noise_belongs_to_the_last_tenth_and_nan_nowhere():
    found = by_level([1.0, 0.0, 0.0], [2.0, float("nan"), 4.0])
    assert found == {"loss_by_t": [4.0, *[None] * 8, 2.0], "t_counts": [1, *[0] * 8, 1]}


def test_means_over_rows_weigh_by_count():
    rows = [by_level([0.05] * 3, [1.0] * 3), {"step": 2}, by_level([0.05, 0.5], [5.0, 7.0])]
    means, counts = mean_by_level(rows)
    assert (means[0], counts[0], means[5], means[1]) == (2.0, 4, 7.0, None)
