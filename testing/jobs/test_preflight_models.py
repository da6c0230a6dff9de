"""Models that a check says cannot be loaded, without loading them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.preflight import check_files
from testing.job_helpers import training_config
from testing.tiny_models import build_tiny_sd15, export_ldm_checkpoint, tiny_pipeline
from toolkit.errors import Problem


def problems(tmp_path: Path, model: Path) -> list[Problem]:
    (report,) = check_files([str(training_config(tmp_path, model))], None)
    return list(report.all_problems)


@pytest.mark.parametrize("left", [-1, -1000])
def test_weights_of_a_folder_that_end_too_early(tmp_path, left):
    model = build_tiny_sd15(tmp_path / "sd15")
    assert problems(tmp_path, model) == []
    (file,) = (model / "unet").glob("*.safetensors")
    os.truncate(file, file.stat().st_size + left)
    (problem,) = problems(tmp_path, model)
    assert (problem.code, problem.key) == ("model.load", "model.name_or_path")
    assert file.name in problem.message
    assert "ends too early" in problem.message
    assert problem.remedy == "download it again"


def test_a_file_that_ends_too_early(tmp_path):
    file = export_ldm_checkpoint(tiny_pipeline(), tmp_path / "model.safetensors")
    assert problems(tmp_path, file) == []
    os.truncate(file, file.stat().st_size - 1)
    (problem,) = problems(tmp_path, file)
    assert "model.safetensors" in problem.message
    assert "ends too early" in problem.message
    os.truncate(file, 100)
    (problem,) = problems(tmp_path, file)
    assert "is not a readable .safetensors file" in problem.message
