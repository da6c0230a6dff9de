"""The sheet to choose a save from: every save at every strength, and pictures of just that save."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from jobs import keeper_sheet
from jobs.base_job import run_job
from testing.job_helpers import training_config
from testing.tiny_models import build_tiny_sd15
from toolkit.config_modules.loading import load_job
from toolkit.model_utils import apply_lora, load_model_for_inference
from toolkit.runs.images import read_recipe

SAMPLE = {"keeper_sheet": True, "keeper_strengths": [0.0, 0.5, 1.0], "sample_every": 0, "prompts": ["a disk"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture
def folder(tmp_path, monkeypatch, model) -> Path:
    """A finished run without a sheet, of saves after steps 2 and 4."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    changes = {"save": {"save_every": 2}, "train": {"lr": 0.05}}
    run_job(load_job(training_config(tmp_path, model, **changes)))
    assert not (tmp_path / "out" / "run" / "keeper").exists()
    run_job(load_job(training_config(tmp_path, model, sample=SAMPLE, **changes)))
    return tmp_path / "out" / "run"


def pixels(path: Path) -> numpy.ndarray:
    return numpy.asarray(Image.open(path).convert("RGB"), dtype=float)


def test_a_finished_run_gets_its_sheet_without_training(folder, model):
    pictures = {path.name: pixels(path) for path in sorted((folder / "keeper").iterdir())}
    assert list(pictures) == [f"{step:09d}_0_{s}.png" for step in (2, 4) for s in ("0.5", "0", "1")]
    base = [pictures[f"{step:09d}_0_0.png"] for step in (2, 4)]
    assert (base[0] == base[1]).all(), "strength 0 is the base model whatever the save"
    differences = [
        abs(pictures[f"{step:09d}_0_{s}.png"] - base[0]).mean() for step in (2, 4) for s in ("0.5", "1")
    ]
    assert 0 < differences[0] < differences[1]
    assert differences[1] != differences[3]
    width, height = Image.open(folder / "keeper_sheet.png").size
    assert width > 2 * 128 and height > 3 * 128
    assert "Which save to keep" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_picture_is_what_the_saved_file_draws(folder, model):
    """By diffusers, with the file on a fresh model."""
    from toolkit.training.previews import preview_context, render

    path = folder / "keeper" / "000000002_0_1.png"
    recipe = read_recipe(path)
    (section,) = load_job(folder / "config.yaml").config.process
    (request,) = section.sample.requests()
    sd = load_model_for_inference(model)
    apply_lora(sd, folder / "run_000000002.safetensors")
    with preview_context(sd.architecture):
        (drawn,) = render(sd.architecture, [request])
    assert abs(pixels(path) - numpy.asarray(drawn, dtype=float)).max() <= 1
    assert (recipe["network_multiplier"], recipe["step"]) == (1.0, 2)


def test_the_final_weights_are_untouched(folder):
    checkpoint = sorted((folder / "checkpoints").iterdir())[-1]
    weights = load_file(checkpoint / "weights.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())
    saved = load_file(folder / "run.safetensors")
    ups = sum(float(v.double().abs().sum()) for k, v in saved.items() if "lora_up" in k)
    own = sum(float(v.double().abs().sum()) for k, v in weights.items() if "lora_B" in k)
    assert ups == pytest.approx(own, rel=1e-6)


def test_pictures_without_memory_are_left_out_and_the_run_ends_well(tmp_path, monkeypatch, model):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw = keeper_sheet.render

    def scarce(architecture, requests, **rest):
        if requests[0].network_multiplier == 1.0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(architecture, requests, **rest)

    monkeypatch.setattr(keeper_sheet, "render", scarce)
    run_job(load_job(training_config(tmp_path, model, sample=SAMPLE, train={"steps": 2})))
    folder = tmp_path / "out" / "run"
    assert sorted(path.name for path in (folder / "keeper").iterdir()) == [
        "000000002_0_0.5.png", "000000002_0_0.png",
    ]  # fmt: skip
    assert "note: not enough memory for a preview" in (folder / "log.txt").read_text()
    assert (folder / "keeper_sheet.png").exists() and (folder / "report.html").exists()
