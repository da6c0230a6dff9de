"""The benchmark of validation runs, and its goal holds."""

from __future__ import annotations

import json

import pytest

from testing.benchmarks import bench_validation


@pytest.mark.slow
def test_a_validation_costs_hardly_more_than_its_forward_passes(capsys):
    code = bench_validation.main(["--quick"])
    result = json.loads(capsys.readouterr().out)
    assert result["forwards"] == 4
    assert (code, result["ratio"] <= bench_validation.GOAL) == (0, True), result
