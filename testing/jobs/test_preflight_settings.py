"""Checking jobs: what is wrong with them is told in full, once, and before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.preflight import require_ready
from testing.job_helpers import training_config
from toolkit.config_modules.loading import load_job
from toolkit.errors import UserError


def test_keywords_that_only_the_optimizer_can_judge_are_told_before_anything_is_written(tmp_path):
    train = {"optimizer": "sgd", "optimizer_params": {"nesterov": True}}
    path = training_config(tmp_path, Path("tiny-sd"), "run", train=train)
    with pytest.raises(UserError) as caught:
        require_ready([load_job(path)])
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == ("config.bad_value", "train.optimizer_params.nesterov")
    assert problem.file == str(path)
    assert path.read_text().splitlines()[problem.line - 1].strip() == "nesterov: true"
    assert not (tmp_path / "output").exists()
