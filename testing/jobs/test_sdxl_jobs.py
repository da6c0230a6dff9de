"""Training Stable Diffusion XL as its users do it, on a toy model of the real classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from jobs.base_job import run_job
from testing.job_helpers import make_dataset, outcome, training_config
from testing.tiny_models import build_tiny_sdxl
from toolkit.config_modules.loading import load_job
from toolkit.metadata import read_metadata
from toolkit.models.sdxl.model import SDXL
from toolkit.runs.metrics import read_metrics

pytestmark = pytest.mark.slow

PREVIEWS = {"train": {"steps": 2, "lr": 1e-1, "disable_sampling": False, "train_text_encoder": True}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sdxl(tmp_path_factory.mktemp("model") / "sdxl")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def train(tmp_path: Path, model: Path, /, **changes: Any) -> Path:
    run_job(load_job(training_config(tmp_path, model, "run", **changes)))
    return tmp_path / "out" / "run"


def last_preview(folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    """The recipe and the pixels of the first prompt's picture after the last step."""
    newest = max((folder / "samples").glob("*_0.png"), key=lambda path: path.name.split("__")[1])
    with Image.open(newest) as image:
        return json.loads(image.info["recipe"]), np.asarray(image.convert("RGB"), dtype=np.int16)


def drawn_by(judge: StableDiffusionXLPipeline, recipe: dict[str, Any]) -> np.ndarray:
    judge.set_progress_bar_config(disable=True)
    picture = judge(
        recipe["prompt"], negative_prompt=recipe["neg"], width=32, height=32, num_inference_steps=2,
        guidance_scale=recipe["guidance_scale"], generator=torch.Generator().manual_seed(recipe["seed"]),
    ).images[0]  # fmt: skip
    return np.asarray(picture, dtype=np.int16)


def test_a_lora_of_two_steps_draws_in_diffusers_what_its_preview_shows(tmp_path, model):
    folder = train(tmp_path, model, **PREVIEWS, sample={"sample_every": 0, "format": "png"})
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2]
    file = folder / "run.safetensors"
    learned = {
        key for key, value in load_file(file).items() if key.endswith("lora_up.weight") and value.any()
    }
    # Every part learns; of the first encoder only what the UNet hears, which its last layer is not.
    assert {key.split("_")[1] for key in learned} == {"unet", "te1", "te2"}
    assert not any(key.startswith("lora_te1_text_model_encoder_layers_1") for key in learned)
    metadata = read_metadata(file)
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    judge = StableDiffusionXLPipeline.from_pretrained(model)
    recipe, preview = last_preview(folder)
    assert np.abs(drawn_by(judge, recipe) - preview).max() > 5
    judge.load_lora_weights(str(file))
    assert np.abs(drawn_by(judge, recipe) - preview).max() <= 1


@pytest.mark.parametrize("save_format", ["diffusers", "safetensors"])
def test_a_full_fine_tune_draws_in_diffusers_what_its_preview_shows(tmp_path, model, save_format):
    settings = {"network": None, "save": {"save_format": save_format, "dtype": "fp32"}}
    sample = {"sample_every": 0, "format": "png"}
    quiet = {"train": PREVIEWS["train"] | {"lr": 1e-3, "gradient_checkpointing": True}}
    folder = train(tmp_path, model, **settings, **quiet, sample=sample)
    if save_format == "diffusers":
        judge = StableDiffusionXLPipeline.from_pretrained(folder / "run")
    else:
        judge = StableDiffusionXLPipeline.from_single_file(
            str(folder / "run.safetensors"), config=str(model), local_files_only=True
        )
    recipe, preview = last_preview(folder)
    assert np.abs(drawn_by(judge, recipe) - preview).max() <= 1
    assert np.abs(drawn_by(StableDiffusionXLPipeline.from_pretrained(model), recipe) - preview).max() > 1


@pytest.mark.parametrize(("side", "counts"), [(32, False), (96, True)])
def test_a_run_tells_the_model_the_sizes_of_its_pictures(tmp_path, model, monkeypatch, side, counts):
    """Told nothing, the model takes them for whole pictures of their bucket's size."""
    make_dataset(tmp_path / "data", [(side, side)] * 2)
    told = outcome(tmp_path, model, {"train": {"steps": 2}})["losses"]
    monkeypatch.setattr(SDXL, "condition_items", lambda self, conditioning, batch: conditioning)
    shutil.copytree(tmp_path / "data", tmp_path / "untold" / "data")
    untold = outcome(tmp_path / "untold", model, {"train": {"steps": 2}})["losses"]
    assert (told != pytest.approx(untold, rel=1e-4)) == counts


def test_prompts_from_the_disk_are_those_that_were_encoded(tmp_path, model):
    """The pooled embedding is cached with the others."""
    plain = outcome(tmp_path / "plain", model, {})["losses"]
    cached = {"train": {"cache_text_embeddings": True}}
    assert outcome(tmp_path / "first", model, cached)["losses"] == plain
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    assert outcome(tmp_path / "second", model, cached)["losses"] == plain


def test_velocity_with_zero_terminal_snr_trains(tmp_path, model):
    v = {"model": {"prediction_type": "v_prediction"}}
    plain, zero = (
        outcome(tmp_path / name, model, v | {"train": {"steps": 2, "zero_terminal_snr": on}})
        for name, on in (("plain", False), ("zero", True))
    )
    assert plain["losses"] != zero["losses"]
    assert zero["metadata"]["modelspec.prediction_type"] == "v"


def test_gradient_checkpointing_changes_no_number(tmp_path, model):
    settings = {"lr": 1e-2, "train_text_encoder": True}
    plain, again = (
        outcome(tmp_path / str(on), model, {"train": settings | {"gradient_checkpointing": on}})["losses"]
        for on in (False, True)
    )
    assert plain == pytest.approx(again, rel=1e-5)


def test_a_run_in_bfloat16_draws_and_learns(tmp_path, model):
    result = outcome(tmp_path, model, {"train": PREVIEWS["train"] | {"dtype": "bf16", "lr": 1e-2}})
    assert np.isfinite(result["losses"]).all() and result["samples"] == 2 * 2
    assert any(value for name, value in result["weights"].items() if "lora_up" in name)


@pytest.mark.parametrize("kind", ["locon", "dora", "loha", "lokr"])
def test_every_type_of_network_trains_all_three_parts(tmp_path, model, kind):
    changes = {"network": {"type": kind}, "train": {"steps": 2, "lr": 1e-2, "train_text_encoder": True}}
    result = outcome(tmp_path, model, changes)
    assert result["steps"] == 2
    assert {name.split("_")[1] for name in result["weights"]} == {"unet", "te1", "te2"}


def test_a_word_for_both_encoders(tmp_path, model):
    word = {"network": None, "embedding": {"trigger": "zwx", "tokens": 2, "init_words": "red cat"}}
    folder = train(
        tmp_path, model, **word, train={"steps": 2, "lr": 1.0, "disable_sampling": False},
        sample={"sample_every": 0, "prompts": ["a [trigger] on white"], "guidance_scale": 2, "format": "png"},
    )  # fmt: skip
    vectors = load_file(folder / "zwx.safetensors")
    assert sorted(vectors) == ["clip_g", "clip_l"]
    metadata = read_metadata(folder / "zwx.safetensors")
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/textual-inversion"
    judge = StableDiffusionXLPipeline.from_pretrained(model)
    parts = ((judge.text_encoder, judge.tokenizer), (judge.text_encoder_2, judge.tokenizer_2))
    for key, (encoder, tokenizer) in zip(("clip_l", "clip_g"), parts, strict=True):
        judge.load_textual_inversion(vectors[key], token="zwx", text_encoder=encoder, tokenizer=tokenizer)
    recipe, preview = last_preview(folder)
    assert np.abs(drawn_by(judge, recipe) - preview).max() <= 1


@pytest.mark.parametrize("kind", ["concept_slider", "slider"])
def test_sliders_train(tmp_path, model, kind):
    ends = {"target_class": "a cat"}
    slider = (
        ends | {"positive_prompt": "a red cat", "negative_prompt": "a blue cat"}
        if kind == "concept_slider"
        else {"targets": [ends | {"positive": "a red cat", "negative": "a blue cat"}],
              "resolutions": [[32, 32]], "max_denoising_steps": 4}
    )  # fmt: skip
    changes = {"type": kind, "slider": slider, "train": {"steps": 2, "lr": 1e-2}}
    folder = train(tmp_path, model, **changes, **({"datasets": None} if kind == "slider" else {}))
    assert len(read_metrics(folder / "metrics.jsonl")) == 2
    assert any(
        value.any() for key, value in load_file(folder / "run.safetensors").items() if "lora_up" in key
    )


def test_the_generate_job_draws_with_the_lora(tmp_path, model):
    train(tmp_path, model, train={"steps": 4, "lr": 5e-2})

    def draw(name: str, **more: Any) -> np.ndarray:
        section = {
            "type": "to_folder", "output_folder": str(tmp_path / name), "device": "cpu",
            "model": {"name_or_path": str(model)},
            "generate": {"prompts": ["a disk"], "width": 32, "height": 32, "seed": 5, "sampler": "ddim",
                         "sample_steps": 2, "guidance_scale": 3, **more},
        }  # fmt: skip
        path = tmp_path / f"{name}.yml"
        path.write_text(yaml.safe_dump({"job": "generate", "config": {"name": name, "process": [section]}}))
        run_job(load_job(path))
        with Image.open(next((tmp_path / name).glob("*.png"))) as image:
            return np.asarray(image, dtype=np.int16)

    plain = draw("plain")
    assert np.abs(plain - draw("with", lora_path=str(tmp_path / "out" / "run" / "run.safetensors"))).max() > 5
