"""Jobs on a toy FLUX.1 of the real classes: every kind of training and drawing, judged by diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import load_file

from jobs.base_job import run_job
from testing.job_helpers import make_dataset, merged, training_config
from testing.tiny_models import T5_LENGTH, build_tiny_flux
from toolkit.config_modules.loading import load_job
from toolkit.errors import ModelError
from toolkit.metadata import read_metadata
from toolkit.models.flux.loading import load
from toolkit.paths import ROOT
from toolkit.runs.metrics import read_metrics

# What the tiny config says for Stable Diffusion; the architecture and its noise follow from the folder.
FLUX = {"sample": {"sampler": "flowmatch", "guidance_scale": 3.5, "format": "png"}, "train": {"steps": 2}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_flux(tmp_path_factory.mktemp("model") / "flux")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def train(tmp_path: Path, model: Path, name: str = "run", /, **changes: Any) -> Path:
    sections = FLUX | {
        key: merged(FLUX[key], value) if key in FLUX else value for key, value in changes.items()
    }
    run_job(load_job(training_config(tmp_path, model, name, **sections)))
    return tmp_path / "out" / name


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


def drawn_by(pipeline: FluxPipeline, prompt: str) -> np.ndarray:
    """What diffusers draws for a preview of the tiny config."""
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        prompt, height=32, width=32, num_inference_steps=2, guidance_scale=3.5,
        max_sequence_length=T5_LENGTH, generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    return np.asarray(picture, dtype=int)


def previews(folder: Path) -> list[np.ndarray]:
    """The previews of the last step, in order."""
    paths = sorted((folder / "samples").glob("*__000000002_*.png"), key=lambda path: path.stem[-1])
    return [np.asarray(Image.open(path), dtype=int) for path in paths]


def test_a_lora_is_trained_drawn_and_read_by_diffusers(tmp_path, model):
    """With all that a run may have: caches on disk, pictures of a class, EMA, checkpointed gradients."""
    make_dataset(tmp_path / "class", [(32, 32), (48, 24)])
    cached = {"resolution": 32, "cache_latents_to_disk": True}
    datasets = [
        {"folder_path": str(tmp_path / "data"), "caption_dropout_rate": 0.3} | cached,
        {"folder_path": str(tmp_path / "class"), "is_reg": True} | cached,
    ]
    settings = {
        "cache_text_embeddings": True, "gradient_checkpointing": True, "disable_sampling": False,
        "reg_weight": 0.5, "lr": 0.05, "timestep_type": "flux_shift",
        "ema_config": {"use_ema": True, "ema_decay": 0.5},
    }  # fmt: skip
    folder = train(tmp_path, model, datasets=datasets, train=settings)
    assert len(losses(folder)) == 2 and all(0.1 < loss < 10 for loss in losses(folder))
    file = folder / "run.safetensors"
    keys = set(load_file(file))
    assert len(keys) == 2 * (2 * 14 + 2 * 6) and all(key.startswith("transformer.") for key in keys)
    metadata = read_metadata(file)
    assert metadata["ss_base_model_version"] == "flux1"
    assert metadata["modelspec.architecture"] == "flux-1-dev/lora"
    judge = FluxPipeline.from_pretrained(model)
    before = drawn_by(judge, "a disk")
    judge.load_lora_weights(str(file))
    for picture, prompt in zip(previews(folder), ["a disk", "a box"], strict=True):
        assert np.abs(picture - drawn_by(judge, prompt)).max() <= 1
    assert np.abs(before - drawn_by(judge, "a disk")).max() > 3


def test_captions_that_t5_cannot_read_whole_are_named_before_the_first_step(tmp_path, model):
    data = make_dataset(tmp_path / "data")
    for index in (1, 3):
        (data / f"disk{index}.txt").write_text(str(index) * T5_LENGTH)
    with pytest.raises(ModelError) as caught:
        train(tmp_path, model)
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == 2 and all(f"has {T5_LENGTH + 1} tokens, at most {T5_LENGTH}" in line for line in told)
    assert {Path(problem.file).name for problem in caught.value.problems} == {"disk1.png", "disk3.png"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dora", "loha", "lokr"])
def test_every_type_of_network_trains(tmp_path, model, kind):
    folder = train(tmp_path, model, network={"type": kind})
    assert all(np.isfinite(losses(folder)))
    assert load_file(folder / "run.safetensors")


@pytest.mark.slow
def test_a_network_on_clip_too_is_read_by_diffusers(tmp_path, model):
    folder = train(tmp_path, model, train={"train_text_encoder": True, "lr": 0.05, "disable_sampling": False})
    assert {key.partition(".")[0] for key in load_file(folder / "run.safetensors")} == {
        "transformer", "text_encoder"
    }  # fmt: skip
    judge = FluxPipeline.from_pretrained(model)
    judge.load_lora_weights(str(folder / "run.safetensors"))
    assert np.abs(previews(folder)[0] - drawn_by(judge, "a disk")).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("save_format", ["diffusers", "safetensors"])
def test_a_full_fine_tune_is_saved_for_diffusers(tmp_path, model, save_format):
    folder = train(
        tmp_path, model, network=None, save={"save_format": save_format},
        train={"lr": 0.01, "disable_sampling": False, "gradient_checkpointing": True},
    )  # fmt: skip
    if save_format == "diffusers":
        judge = FluxPipeline.from_pretrained(folder / "run")
    else:
        path = folder / "run.safetensors"
        judge = load(path, config_dir=model, extras_name_or_path=str(model)).pipeline()
        assert read_metadata(path)["modelspec.architecture"] == "flux-1-dev"
    assert np.abs(previews(folder)[0] - drawn_by(judge, "a disk")).max() <= 1
    assert np.abs(previews(folder)[0] - drawn_by(FluxPipeline.from_pretrained(model), "a disk")).max() > 3


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_stopped(tmp_path, model):
    settings = {"train": {"steps": 4}, "save": {"save_every": 2}}
    straight = train(tmp_path, model, "straight", **settings)
    train(tmp_path, model, "parts", train={"steps": 2}, save={"save_every": 2})
    resumed = train(tmp_path, model, "parts", **settings)
    one, two = (load_file(folder / f"{folder.name}.safetensors") for folder in (straight, resumed))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert losses(straight) == losses(resumed)


CONCEPT = {
    "type": "concept_slider",
    "slider": {"target_class": "a cat", "positive_prompt": "a red cat", "negative_prompt": "a blue cat"},
}
TEXT = {
    "type": "slider",
    "datasets": None,
    "slider": {
        "targets": [{"target_class": "a cat", "positive": "a red cat", "negative": "a blue cat"}],
        "resolutions": [[32, 32]],
        "max_denoising_steps": 4,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [CONCEPT, TEXT], ids=["concept", "text"])
def test_sliders_train(tmp_path, model, kind):
    folder = train(tmp_path, model, **kind, train={"disable_sampling": False})
    assert len(losses(folder)) == 2 and all(np.isfinite(losses(folder)))
    assert (folder / "slider_sheet.png").is_file()


@pytest.mark.slow
def test_settings_of_flux_count(tmp_path, model):
    plain = train(tmp_path, model, "plain", train={"disable_sampling": False})
    bypass = train(tmp_path, model, "bypass", train={"bypass_guidance_embedding": True})
    cfg = train(tmp_path, model, "cfg", model={"use_flux_cfg": True}, train={"disable_sampling": False})
    assert losses(bypass) == losses(cfg) != losses(plain)
    assert np.abs(previews(cfg)[0] - previews(plain)[0]).max() > 3
    shifted = train(tmp_path, model, "shifted", train={"timestep_type": "shift"})
    assert losses(shifted) != losses(plain)
    other = build_tiny_flux(tmp_path / "other", seed=1)
    elsewhere = train(tmp_path, model, "elsewhere", model={"extras_name_or_path": str(other)})
    assert losses(elsewhere) != losses(plain)


@pytest.mark.slow
def test_pictures_are_generated_with_a_lora_at_whole_tokens(tmp_path, model):
    lora = train(tmp_path, model, train={"lr": 0.05}) / "run.safetensors"
    process = {
        "type": "to_folder",
        "output_folder": str(tmp_path / "pictures"),
        "device": "cpu",
        "model": {"name_or_path": str(model)},
        "generate": {
            "prompts": ["a disk"], "width": 44, "height": 32, "seed": 0, "sample_steps": 2,
            "guidance_scale": 3.5, "lora_path": str(lora),
        },
    }  # fmt: skip
    job = {"job": "generate", "config": {"name": "draw", "process": [process]}}
    (tmp_path / "draw.yml").write_text(yaml.safe_dump(job))
    run_job(load_job(tmp_path / "draw.yml"))
    (path,) = (tmp_path / "pictures").glob("*.png")
    with Image.open(path) as picture:
        assert picture.size == (40, 32)
        assert "Size: 40x32" in picture.text["parameters"]


@pytest.mark.slow
def test_the_example_trains(tmp_path, model):
    job = yaml.safe_load((ROOT / "config" / "examples" / "train_lora_flux.yml").read_text(encoding="utf-8"))
    (process,) = job["config"]["process"]
    process |= {"training_folder": str(tmp_path / "out"), "device": "cpu"}
    process["train"]["steps"] = 2
    process["model"] |= {"name_or_path": str(model)}
    process["sample"] |= {"sample_steps": 1, "sample_every": 0, "width": 32, "height": 32}
    process["sample"]["prompts"] = ["[trigger] on a market"]
    (dataset,) = process["datasets"]
    dataset |= {"folder_path": str(make_dataset(tmp_path / "data")), "resolution": [32]}
    (tmp_path / "flux.yml").write_text(yaml.safe_dump(job, sort_keys=False))
    run_job(load_job(tmp_path / "flux.yml"))
    folder = tmp_path / "out" / "my_flux_lora"
    assert len(losses(folder)) >= 1
    assert (folder / "my_flux_lora.safetensors").is_file() and (folder / "contact_sheet.png").is_file()
