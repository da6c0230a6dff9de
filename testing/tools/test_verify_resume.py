"""The proof of a resume: what is compared, and that a difference is told."""

import random
from pathlib import Path

import pytest
import torch

from testing.job_helpers import training_config
from testing.tiny_models import build_tiny_sd15
from toolkit.config_modules.loading import load_job
from toolkit.errors import RunError
from toolkit.paths import ROOT
from toolkit.runs.metrics import MetricsWriter
from toolkit.training.checkpoints import Checkpoint, save_checkpoint
from tools import verify_resume
from tools.verify_resume import compare, kill_steps, main, short_job


def finished(folder: Path, *, weight: float = 1.0, loss: float = 0.5, position: int = 4) -> Path:
    """What a run of two steps leaves."""
    values = dict.fromkeys(verify_resume.STATE, 0) | {"position": position}
    tensors = {"weights": {"w": torch.tensor([weight, 2.0])}, "optimizer": {"m": torch.zeros(3)}}
    save_checkpoint(folder / "checkpoints", Checkpoint(2, tensors, values))
    with MetricsWriter(folder / "metrics.jsonl") as metrics:
        metrics.write(1, loss=0.25, seconds=0.5)
        metrics.write(2, loss=loss, seconds=0.5)
    return folder


def test_equal_runs_are_equal_and_what_was_compared_is_counted(tmp_path):
    verdict = compare(finished(tmp_path / "a"), finished(tmp_path / "b"))
    assert verdict.differences == []
    assert verdict.counts == {"weights": 1, "optimizer": 1, "losses": 2}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weight": 1.0000001}, "weights: w differs by up to 1.19e-07"),
        ({"loss": 0.75}, "losses: from step 2 on, 0.75 instead of 0.5"),
        ({"position": 5}, "state: position is 5 instead of 4"),
    ],
)
def test_what_differs_is_named(tmp_path, changes, told):
    assert compare(finished(tmp_path / "a"), finished(tmp_path / "b", **changes)).differences == [told]


def test_the_job_is_shortened_and_otherwise_as_it_was(tmp_path):
    loaded = load_job(training_config(tmp_path, tmp_path / "model", "mine", train={"lr_scheduler": "cosine"}))
    raw = short_job(loaded, tmp_path / "elsewhere", "straight", 12, 2)
    (process,) = raw["config"]["process"]
    assert process["training_folder"] == str(tmp_path / "elsewhere") and process["name"] == "straight"
    assert process["train"] == loaded.raw["config"]["process"][0]["train"] | {"steps": 12}
    assert process["save"]["save_every"] == 2
    assert loaded.raw["config"]["process"][0]["save"]["save_every"] == 0, "the user's own job is left alone"


def test_a_job_that_trains_nothing_is_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "draw.yml"
    path.write_text(
        "job: generate\nconfig:\n  name: a\n  process:\n    - type: to_folder\n      output_folder: out\n"
        "      model: {name_or_path: tiny-sd}\n      generate: {prompts: [a fox]}\n"
    )
    with pytest.raises(RunError, match="this job trains nothing"):
        short_job(load_job(path), tmp_path, "a", 4, 1)
    examples = [ROOT / "config" / "examples" / f"{name}_dataset.yml" for name in ("eval", "caption")]
    for each in (path, *examples):
        assert main([str(each)]) == 2
        assert capsys.readouterr().err == f"error: {each}: this job trains nothing\n"


def test_kills_come_after_saves_and_before_the_end():
    for seed in range(20):
        steps = kill_steps(12, 2, 3, random.Random(seed))
        assert steps == sorted(steps) and len(set(steps)) == 3 and set(steps) <= {2, 4, 6, 8}
    assert kill_steps(4, 1, 5, random.Random(0)) == sorted(kill_steps(4, 1, 5, random.Random(0)))


@pytest.mark.slow
def test_a_job_is_proven_and_its_own_folder_is_left_alone(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = build_tiny_sd15(tmp_path / "model")
    changes = {"network": {"dropout": 0.2}, "train": {"ema_config": {"use_ema": True, "ema_decay": 0.9}}}
    path = training_config(tmp_path, model, "mine", **changes)
    code = main([str(path), "--steps", "40", "--kills", "2"])
    output = capfd.readouterr().out
    assert code == 0 and "EQUAL to the bit after" in output, output
    assert "ema" in output and "losses 40" in output
    assert not (tmp_path / "out").exists()
    bad = training_config(tmp_path, tmp_path / "no-model", "bad")
    assert main([str(bad), "--kills", "1"]) == 2
    assert "no-model" in capfd.readouterr().err
