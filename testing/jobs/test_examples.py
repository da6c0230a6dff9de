"""The examples that train the embedded model do train: each for two steps, with a preview."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.base_job import run_job
from toolkit.config_modules.loading import load_job
from toolkit.paths import ROOT
from toolkit.runs.metrics import read_metrics

pytestmark = pytest.mark.slow

EXAMPLES = {path.name: path for path in sorted((ROOT / "config" / "examples").glob("*.yml"))}


def trains_the_embedded_model(path: Path) -> bool:
    job = yaml.safe_load(path.read_text(encoding="utf-8"))
    (process,) = job["config"]["process"]
    if "train" not in process:
        return False
    # The recipes of the model itself begin without weights, on drawings that a command makes.
    return process["model"]["name_or_path"] == "tiny-sd" and not process["model"].get("from_config")


NAMES = [name for name, path in EXAMPLES.items() if trains_the_embedded_model(path)]


def shortened(path: Path, tmp_path: Path) -> Path:
    """The example with two steps and previews of one step, its run folder elsewhere."""
    job: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    (process,) = job["config"]["process"]
    process["training_folder"] = str(tmp_path / "out")
    process["train"] |= {"steps": 2, "batch_size": 2}
    process["sample"] |= {"sample_steps": 1, "sample_every": 0}
    for dataset in process.get("datasets", []):
        dataset["folder_path"] = str(ROOT / dataset["folder_path"])
    short = tmp_path / path.name
    short.write_text(yaml.safe_dump(job, sort_keys=False), encoding="utf-8")
    return short


def test_the_list_is_not_empty():
    assert {"demo.yml", "train_concept_slider.yml", "train_textual_inversion.yml"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loaded = load_job(shortened(EXAMPLES[name], tmp_path))
    run_job(loaded)
    folder = tmp_path / "out" / loaded.config.name
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row] == [1, 2]
    assert list(folder.glob("*.safetensors")) or list(folder.glob("*.pt")) or list(folder.glob("*/unet"))
    assert (folder / "contact_sheet.png").is_file()
