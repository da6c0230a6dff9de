"""`type: vae`: an autoencoder from random weights, as its user runs it."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from PIL import Image

from testing.job_helpers import make_dataset, merged, train
from testing.tiny_models import build_tiny_sd15, strip_weights
from toolkit.data.transforms import image_to_tensor
from toolkit.errors import ModelError
from toolkit.models.shared.autoencoders import latent_std
from toolkit.runs.checkpoints import list_checkpoints
from toolkit.runs.metrics import read_metrics
from toolkit.training.checkpoints import load_checkpoint


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> Path:
    """A model folder with configs only."""
    folder = build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")
    strip_weights(folder)
    return folder


def vae_config(tmp_path: Path, configs: Path, name: str = "vae", **changes) -> Path:
    process = {
        "type": "vae", "training_folder": str(tmp_path / "out"), "training_seed": 1, "device": "cpu",
        "model": {"name_or_path": str(configs), "from_config": True},
        "datasets": [{"folder_path": str(make_dataset(tmp_path / "data", [(32, 32)] * 8)), "resolution": 32}],
        "train": {"steps": 30, "batch_size": 4, "lr": 5e-3, "gradient_checkpointing": False, "num_threads": 1,
                  "ema_config": {"use_ema": True, "ema_decay": 0.9}},
        "vae_loss": {"mse": 1.0, "mae": 0.1, "pooled_mse": 1.0, "kl": 1e-4},
        "save": {"save_every": 10, "dtype": "fp32"},
        "logging": {"log_every": 1},
        "sample": {"sample_every": 20},
    }  # fmt: skip
    path = tmp_path / f"{name}.yml"
    job = {"job": "train", "config": {"name": name, "process": [merged(process, changes)]}}
    path.write_text(yaml.safe_dump(job))
    return path


def test_it_learns_to_reconstruct_and_diffusers_loads_it(tmp_path, configs):
    folder = train(vae_config(tmp_path, configs))
    curve = [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]
    assert len(curve) == 30 and sum(curve[-5:]) < 0.5 * sum(curve[:5])
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    pictures = [Image.open(path).convert("RGB") for path in sorted((tmp_path / "data").glob("*.png"))]
    pixels = torch.stack([image_to_tensor(picture) for picture in pictures])
    # What trains on these latents expects them to have unit spread.
    assert vae.config.scaling_factor * latent_std(vae, pixels) == pytest.approx(1.0, rel=1e-3)
    averaged = load_checkpoint(list_checkpoints(folder / "checkpoints")[-1][1]).tensors["ema"]
    saved = vae.state_dict()
    assert all(torch.equal(saved[name.removeprefix("vae.")], tensor) for name, tensor in averaged.items())
    with Image.open(next(iter((folder / "samples").iterdir()))) as preview:
        assert preview.size == (64, 32), "original and reconstruction side by side"


def test_a_resumed_run_equals_a_straight_one(tmp_path, configs):
    straight = train(vae_config(tmp_path, configs, "straight", train={"steps": 6}, save={"save_every": 0}))
    half = vae_config(tmp_path, configs, "half", train={"steps": 3}, save={"save_every": 0})
    train(half)
    folder = train(vae_config(tmp_path, configs, "half", train={"steps": 6}, save={"save_every": 0}))
    one, two = (
        load_checkpoint(list_checkpoints(f / "checkpoints")[-1][1]).tensors for f in (straight, folder)
    )
    for group in one:
        assert all(torch.equal(one[group][name], two[group][name]) for name in one[group]), group


def test_the_weights_of_the_terms_count(tmp_path, configs):
    def first_loss(name: str, **weights: float) -> float:
        return [
            row["loss"]
            for row in read_metrics(
                train(vae_config(tmp_path, configs, name, train={"steps": 1}, vae_loss=weights))
                / "metrics.jsonl"
            )
        ][0]

    none = {"mse": 0.0, "mae": 0.0, "pooled_mse": 0.0, "kl": 0.0}
    parts = {term: first_loss(term, **(none | {term: 1.0})) for term in none}
    assert all(value > 0 for value in parts.values())
    together = first_loss("together", mse=1.0, mae=0.5, pooled_mse=2.0, kl=0.01)
    expected = parts["mse"] + 0.5 * parts["mae"] + 2 * parts["pooled_mse"] + 0.01 * parts["kl"]
    assert together == pytest.approx(expected, rel=1e-4)


def test_chosen_sources_are_previewed(tmp_path, configs):
    make_dataset(tmp_path / "other", [(48, 32)])
    source = str(tmp_path / "other" / "disk0.png")
    folder = train(vae_config(tmp_path, configs, "shown", train={"steps": 1}, sample={"sources": [source]}))
    previews = list((folder / "samples").iterdir())
    assert len(previews) == 2  # before the first step and at the end
    with Image.open(previews[0]) as preview:
        assert preview.width > 2 * preview.height, "two pictures wider than high, side by side"


def test_a_folder_without_an_autoencoder_is_named(tmp_path, configs):
    (tmp_path / "empty").mkdir()
    path = vae_config(tmp_path, configs, model={"name_or_path": str(tmp_path / "empty")})
    with pytest.raises(ModelError, match="no autoencoder here"):
        train(path)
