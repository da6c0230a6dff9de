"""Checking jobs: what is wrong with them is told in full, once, and before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.preflight import check_files, require_ready
from testing.job_helpers import training_config
from toolkit.config_modules.loading import load_job
from toolkit.errors import UserError


def test_keywords_that_only_the_optimizer_can_judge_are_told_before_anything_is_written(tmp_path):
    train = {"optimizer": "muon", "optimizer_params": {"ns_coeffs": "none"}}
    path = training_config(tmp_path, Path("tiny-sd"), "run", train=train)
    with pytest.raises(UserError) as caught:
        require_ready([load_job(path)])
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == ("config.bad_value", "train.optimizer_params.ns_coeffs")
    assert problem.file == str(path)
    assert path.read_text().splitlines()[problem.line - 1].strip() == "ns_coeffs: none"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [{"train": {"dtype": "nope"}}, {"model": {"arch": "nope"}}])
def test_the_model_of_a_broken_job_is_looked_for_too(tmp_path, wrong):
    path = training_config(tmp_path, Path("/nowhere/model"), "run", **wrong)
    (report,) = check_files([str(path)], None)
    (section,) = wrong
    ((key, _),) = wrong[section].items()
    told = {problem.key: problem for problem in report.all_problems}
    assert list(told) == [f"{section}.{key}", "model.name_or_path"]
    problem = told["model.name_or_path"]
    assert (problem.code, problem.file, problem.value) == ("model.load", str(path), "/nowhere/model")
    assert "name_or_path: /nowhere/model" in path.read_text().splitlines()[problem.line - 1]


def test_a_file_that_is_no_model_is_told_beside_a_broken_config(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"random")
    path = training_config(tmp_path, tmp_path / "model.ckpt", "run", train={"steps": 0})
    (report,) = check_files([str(path)], None)
    assert {problem.key for problem in report.all_problems} == {"train.steps", "model.name_or_path"}


def test_a_broken_config_whose_model_is_there_tells_nothing_of_it(tmp_path):
    path = training_config(tmp_path, Path("tiny-sd"), "run", train={"steps": 0})
    (report,) = check_files([str(path)], None)
    assert [problem.key for problem in report.all_problems] == ["train.steps"]
