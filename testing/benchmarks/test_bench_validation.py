"""The benchmark of validation runs and measures; its ratio is the benchmark's own business."""

from __future__ import annotations

import json

import pytest

from testing.benchmarks import bench_validation


@pytest.mark.slow
def test_a_validation_is_measured_against_its_forward_passes(capsys):
    code = bench_validation.main(["--quick"])
    result = json.loads(capsys.readouterr().out)
    assert result["forwards"] == 4
    assert result["ratio"] > 0
    assert code == (0 if result["ratio"] <= bench_validation.GOAL else 1)
