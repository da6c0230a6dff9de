"""The embedded model: small, loadable by plain diffusers, and made by the very jobs that are committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from toolkit.config_modules.documents import read_document
from toolkit.paths import DATASETS_ROOT, EMBEDDED_MODELS, ROOT
from toolkit.runs.metrics import read_metrics
from tools.embed_tiny import folder_hash

TINY = EMBEDDED_MODELS["tiny-sd"]
TRAINING = TINY / "training"
REPLAYED_STEPS = 200
# Processors differ in the last bits, which training from random weights magnifies to 1e-3 by step 76 (the
# autoencoder) and 83 (the base). Until then every loss is the recorded one; after that the mean is.
EXACT_STEPS = 60


def test_it_is_small_and_its_record_lies_beside_it():
    assert sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) <= 16e6
    provenance = json.loads((TRAINING / "provenance.json").read_text())
    assert len(provenance["commit"]) >= 40
    assert all(len(digest) == 64 for digest in provenance["data"].values())
    for run in ("vae", "base"):
        rows = read_metrics(TRAINING / f"{run}_metrics.jsonl")
        assert [row["step"] for row in rows[:REPLAYED_STEPS]] == list(range(1, REPLAYED_STEPS + 1))
        example = read_document(ROOT / "config" / "examples" / f"tiny_{run}.yml", {}).data
        trained = read_document(TRAINING / f"{run}_config.yml", {}).data
        assert trained == example, "the committed config must be the one that was run"


def test_plain_diffusers_loads_it_and_it_obeys_a_prompt():
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(TINY, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    image = pipeline(
        "a large red circle on a white background", width=32, height=32, num_inference_steps=20,
        guidance_scale=4, generator=torch.Generator().manual_seed(3), output_type="np",
    ).images[0]  # fmt: skip
    red, green, blue = image[12:20, 12:20].reshape(-1, 3).mean(0)
    assert red > 0.6 and green < 0.35 and blue < 0.35, "the middle must be red"
    assert image[:2, :2].mean() > 0.85, "the corner must be white"


def replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str) -> tuple[list[float], list[float]]:
    """The losses of the first steps of a committed run: as recorded, and trained again here from nothing."""
    from jobs.base_job import run_job
    from jobs.training_run import TrainingRun
    from toolkit.config_modules.loading import load_job
    from toolkit.errors import JobStopped
    from tools import draw_shapes, init_tiny

    assert draw_shapes.main(["--out", str(tmp_path / "drawings"), "--count", "24000"]) == 0
    assert init_tiny.main(["--out", str(tmp_path / "init")]) == 0
    provenance = json.loads((TRAINING / "provenance.json").read_text())
    assert folder_hash(tmp_path / "drawings") == provenance["data"]["output/drawings"]

    config = yaml.safe_load((TRAINING / f"{run}_config.yml").read_text())
    process = config["config"]["process"][0]
    process["training_folder"] = str(tmp_path / "out")
    process["train"]["disable_sampling"] = True
    process["model"]["name_or_path"] = str(tmp_path / "init")
    if run == "base":
        process["model"]["vae_path"] = str(TINY / "vae")
    for dataset in process["datasets"]:
        name = Path(dataset["folder_path"]).name
        dataset["folder_path"] = str(tmp_path / name if name == "drawings" else DATASETS_ROOT / name)
    path = tmp_path / f"{run}.yml"
    path.write_text(yaml.safe_dump(config))

    # The schedule spans all steps of the run, so it is stopped rather than shortened.
    after_step = TrainingRun.after_step
    monkeypatch.setattr(
        TrainingRun, "after_step", lambda self, r: after_step(self, r) or r.step >= REPLAYED_STEPS
    )
    with pytest.raises(JobStopped):
        run_job(load_job(path))
    rows = [
        read_metrics(TRAINING / f"{run}_metrics.jsonl"),
        read_metrics(tmp_path / "out" / config["config"]["name"] / "metrics.jsonl"),
    ]
    recorded, again = ([row["loss"] for row in each[:REPLAYED_STEPS]] for each in rows)
    return recorded, again


@pytest.mark.slow
@pytest.mark.parametrize("run", ["vae", "base"])
def test_its_training_can_be_repeated(tmp_path, monkeypatch, run):
    recorded, again = replay(tmp_path, monkeypatch, run)
    assert len(again) == REPLAYED_STEPS
    assert again[:EXACT_STEPS] == pytest.approx(recorded[:EXACT_STEPS], abs=1e-3)
    assert sum(again[100:]) == pytest.approx(sum(recorded[100:]), rel=0.1)
