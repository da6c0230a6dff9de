"""The evaluation's benchmark runs and measures what it says; `--quick`, so with wide limits."""

from __future__ import annotations

import json

import pytest

from testing.benchmarks import bench_eval


@pytest.mark.slow
def test_an_evaluation_costs_little_more_than_its_predictions_and_saves_most_of_them(capsys):
    assert bench_eval.main(["--quick"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0.7 < found["control"] < 1.4
    assert found["cost"] < 1.3 * max(1, found["control"])  # in full: at most 1.05
    assert found["saving_rewording"] >= 100
    assert found["saving_none"] > 1  # none is so far from a caption here that its difference is seen anyway
