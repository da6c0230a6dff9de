"""Textual inversion as its users run it, on a toy model of the real classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from jobs.base_job import run_job
from testing.job_helpers import training_config
from testing.tiny_models import build_tiny_sd15
from toolkit.config_modules.loading import load_job
from toolkit.metadata import read_metadata
from toolkit.runs.checkpoints import list_checkpoints
from toolkit.runs.metrics import read_metrics
from toolkit.training.checkpoints import load_checkpoint

WORD = {"network": None, "embedding": {"trigger": "zwx", "tokens": 2, "init_words": "red cat"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def train(tmp_path: Path, model: Path, name: str = "run", /, **changes: Any) -> Path:
    run_job(load_job(training_config(tmp_path, model, name, **changes)))
    return tmp_path / "out" / name


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


def models(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".pt"))


def vectors(folder: Path) -> torch.Tensor:
    return load_file(folder / "zwx.safetensors")["emb_params"]


def test_a_run_leaves_a_word_that_diffusers_draws_with(tmp_path, model):
    folder = train(
        tmp_path, model, **WORD, save={"save_every": 1, "max_step_saves_to_keep": 2},
        train={"lr": 1.0, "disable_sampling": False},
        sample={"sample_every": 0, "prompts": ["a [trigger] on white"], "guidance_scale": 1, "format": "png"},
    )  # fmt: skip
    assert models(folder) == ["zwx.safetensors", "zwx_000000002.safetensors", "zwx_000000003.safetensors"]
    metadata = read_metadata(folder / "zwx.safetensors")
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert json.loads(metadata["training_info"])["step"] == 4 and metadata["ss_output_name"] == "zwx"
    newest = max((folder / "samples").iterdir(), key=lambda path: path.name.split("__")[1])
    with Image.open(newest) as image:
        recipe, preview = json.loads(image.info["recipe"]), image.convert("RGB").tobytes()
    assert recipe["prompt"] == "a zwx on white"
    judge = StableDiffusionPipeline.from_pretrained(model)
    judge.load_textual_inversion(str(folder / "zwx.safetensors"), token="zwx")
    drawn = judge(
        "a zwx on white", width=32, height=32, num_inference_steps=2, guidance_scale=1,
        generator=torch.Generator().manual_seed(recipe["seed"]),
    ).images[0]  # fmt: skip
    assert drawn.tobytes() == preview


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, model):
    settings = WORD | {"save": {"save_every": 2}, "train": {"lr": 0.1, "ema_config": {"use_ema": True}}}
    straight = train(tmp_path, model, "straight", **settings)
    for steps in (2, 4):
        broken = train(
            tmp_path, model, "broken", **settings | {"train": settings["train"] | {"steps": steps}}
        )
    assert losses(straight) == losses(broken)
    states = [load_checkpoint(list_checkpoints(f / "checkpoints")[-1][1]).tensors for f in (straight, broken)]
    one, two = (state["weights"]["embedding.text_encoder"] for state in states)
    assert torch.equal(one, two)
    assert torch.equal(vectors(straight), vectors(broken))


@pytest.mark.slow
def test_beside_a_network_both_learn_and_each_has_its_file(tmp_path, model):
    both = WORD | {"network": {"type": "lora", "linear": 4, "linear_alpha": 4}, "save": {"save_every": 2}}
    folder = train(tmp_path, model, **both, train={"lr": 1e-2, "train_text_encoder": True})
    assert models(folder) == [
        "run_LoRA.safetensors", "run_LoRA_000000002.safetensors", "zwx.safetensors",
        "zwx_000000002.safetensors",
    ]  # fmt: skip
    lora = load_file(folder / "run_LoRA.safetensors")
    assert any("lora_up" in name and bool(value.any()) for name, value in lora.items())
    alone = train(tmp_path, model, "alone", **WORD, train={"lr": 1e-2})
    assert not torch.equal(vectors(folder), vectors(alone))


REFERENCE = {"lr": 0.1}
SETTINGS = [
    ({"embedding": WORD["embedding"] | {"tokens": 3}}, {}),
    ({"embedding": WORD["embedding"] | {"init_words": "blue dog"}}, {}),
    ({}, {"embedding_lr": 0.5}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "loop"), SETTINGS, ids=map(str, SETTINGS))
def test_a_setting_counts(tmp_path, model, changes, loop):
    reference = train(tmp_path / "a", model, **WORD, train=REFERENCE)
    other = train(tmp_path / "b", model, **WORD | changes, train=REFERENCE | loop)
    assert losses(reference) != losses(other)


@pytest.mark.slow
def test_the_older_format_and_another_trigger_are_other_files(tmp_path, model):
    word = WORD["embedding"] | {"trigger": "qvk", "save_format": "pt"}
    folder = train(tmp_path, model, **WORD | {"embedding": word}, save={"save_every": 2})
    assert models(folder) == ["qvk.pt", "qvk_000000002.pt"]


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_number(tmp_path, model):
    plain = train(tmp_path / "a", model, **WORD, train=REFERENCE)
    checkpointed = train(tmp_path / "b", model, **WORD, train=REFERENCE | {"gradient_checkpointing": True})
    assert losses(plain) == pytest.approx(losses(checkpointed), rel=1e-4)
