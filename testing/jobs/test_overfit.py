"""A run that learns its pictures by heart is warned, one that learns what they share is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.base_job import run_job
from toolkit.config_modules.loading import load_job
from toolkit.paths import ROOT
from tools import draw_shapes

pytestmark = pytest.mark.slow


def run(
    tmp_path: Path, name: str, pictures: Path, changes: dict[str, Any] | None = None, **train: Any
) -> dict[str, Any]:  # fmt: skip
    """What validation.json says of a run of the embedded model on these pictures."""
    process = {
        "type": "sd_trainer", "training_folder": str(tmp_path / "out"), "device": "cpu",
        "model": {"name_or_path": "tiny-sd"},
        "network": {"type": "lora", "linear": 32, "linear_alpha": 32},
        "datasets": [{"folder_path": str(pictures), "resolution": 32, "cache_latents": True}],
        "validation": {"folder_path": str(tmp_path / "unseen"), "every": 20, "num_images": 24,
                       "num_noises": 2},
        "train": {"steps": 80, "batch_size": 8, "optimizer": "adamw", "dtype": "fp32", "num_threads": 1,
                  "gradient_checkpointing": False, "disable_sampling": True} | train,
        "save": {"save_every": 0},
    } | (changes or {})  # fmt: skip
    path = tmp_path / f"{name}.yml"
    job = {"job": "train", "config": {"name": name, "process": [process]}}
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    run_job(load_job(path))
    return json.loads((tmp_path / "out" / name / "validation.json").read_text())


@pytest.fixture
def drawings(tmp_path, monkeypatch) -> Path:
    """Drawings of the kind that the embedded model knows: few to train on, others unseen."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert draw_shapes.main(["--out", str(tmp_path / "unseen"), "--count", "40", "--seed", "1001"]) == 0
    assert draw_shapes.main(["--out", str(tmp_path / "few"), "--count", "8", "--seed", "2002"]) == 0
    return tmp_path / "few"


def test_learning_eight_drawings_by_heart_is_flagged(tmp_path, drawings):
    found = run(tmp_path, "by_heart", drawings, lr=2e-3)
    overfit = found["overfit"]
    assert overfit is not None
    assert overfit["held_out"][1] > 0 > overfit["probe"][2], "bands on either side of no change"
    assert overfit["p"] < overfit["limit"]
    log = (tmp_path / "out" / "by_heart" / "log.txt").read_text()
    assert log.count("warning: overfitting") == 1
    assert found["best_step"] < found["readings"][-1]["step"]


def test_learning_what_pictures_share_is_not(tmp_path, drawings):
    """The faces of the examples: new to the model, and those held out are of the same kind."""
    changes = {"validation": {"fraction": 0.34, "every": 20, "num_noises": 2}}
    found = run(tmp_path, "shared", ROOT / "datasets" / "zrb_faces", changes, lr=5e-4)
    assert found["overfit"] is None
    assert found["readings"][-1]["val_change_high"] < -0.5, "it learns, and not by heart"
    assert "warning" not in (tmp_path / "out" / "shared" / "log.txt").read_text()
