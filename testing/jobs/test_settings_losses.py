"""Every setting of noise, noise levels and loss changes what a run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testing.job_helpers import outcome
from testing.tiny_models import build_tiny_sd15

pytestmark = pytest.mark.slow

V_MODEL = {"prediction_type": "v_prediction"}
DOP = {"diff_output_preservation": True, "diff_output_preservation_class": "box"}
STRONG = {"lr": 1e-2}  # so that four steps move away from the base


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture(scope="module")
def losses(tmp_path_factory, model):
    """losses(changes of the config): those of the four steps; equal changes are run once."""
    known: dict[str, list[float]] = {}

    def run(changes: dict[str, Any]) -> list[float]:
        key = repr(changes)
        if key not in known:
            known[key] = outcome(tmp_path_factory.mktemp("run"), model, changes)["losses"]
        return known[key]

    return run


# train settings -> the settings they are compared with
COUNT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"loss_type": "huber"}, {}),
    ({"loss_type": "smooth_l1"}, {}),
    ({"loss_type": "pseudo_huber"}, {}),
    ({"loss_type": "huber", "huber_c": 0.5}, {"loss_type": "huber"}),
    ({"loss_type": "huber", "huber_schedule": "constant"}, {"loss_type": "huber"}),
    ({"snr_gamma": 5.0}, {}),
    ({"debiased_estimation_loss": True}, {}),
    ({"linear_timesteps": True}, {}),
    ({"linear_timesteps2": True}, {}),
    ({"timestep_type": "weighted"}, {}),
    ({"timestep_type": "flux_shift"}, {}),
    ({"timestep_type": "shift", "discrete_flow_shift": 5.0}, {"timestep_type": "shift"}),
    ({"timestep_type": "lognorm_blend"}, {}),
    ({"timestep_type": "one_step"}, {}),
    ({"content_or_style": "content"}, {}),
    ({"content_or_style": "style"}, {}),
    ({"min_denoising_steps": 500}, {}),
    ({"max_denoising_steps": 500}, {}),
    ({"noise_offset": 0.3}, {}),
    ({"multires_noise_iterations": 4}, {}),
    (
        {"multires_noise_iterations": 4, "multires_noise_discount": 0.9},
        {"multires_noise_iterations": 4},
    ),
    ({"ip_noise_gamma": 0.3}, {}),
    ({"noise_multiplier": 0.9}, {}),
    ({"target_noise_multiplier": 0.9}, {}),
    ({"latent_multiplier": 0.9}, {}),
    ({"noisy_latent_multiplier": 0.9}, {}),
    ({"random_noise_multiplier": 0.3}, {}),
    ({"random_noise_shift": 0.3}, {}),
    ({"do_differential_guidance": True}, {}),
    (
        {"do_differential_guidance": True, "differential_guidance_scale": 2.0},
        {"do_differential_guidance": True},
    ),
    ({"blank_prompt_preservation": True} | STRONG, STRONG),
    (
        {"blank_prompt_preservation": True, "blank_prompt_preservation_multiplier": 3.0} | STRONG,
        {"blank_prompt_preservation": True} | STRONG,
    ),
]


@pytest.mark.parametrize(("train", "without"), COUNT, ids=[str(row[0]) for row in COUNT])
def test_a_setting_of_the_loss_counts(losses, train, without):
    assert losses({"train": train}) != losses({"train": without})


def test_preservation_by_class_counts_with_and_without_cached_prompts(losses):
    """Four pictures of two kinds: reworded captions are encoded ahead, whether kept on disk or not."""
    base = {"trigger_word": "disk"}
    plain = losses(base | {"train": STRONG})
    kept = losses(base | {"train": DOP | STRONG})
    assert kept[0] == plain[0]  # the network does nothing yet
    assert kept[1:] != plain[1:]
    assert losses(base | {"train": DOP | STRONG | {"cache_text_embeddings": True}}) == kept
    stronger = DOP | STRONG | {"diff_output_preservation_multiplier": 4.0}
    assert losses(base | {"train": stronger}) != kept
    other = DOP | STRONG | {"diff_output_preservation_class": "a ring"}
    assert losses(base | {"train": other}) != kept


def test_the_noise_table_can_end_in_pure_noise(losses):
    steps = {"timestep_type": "one_step"}
    plain = losses({"model": V_MODEL, "train": steps})
    assert losses({"model": V_MODEL, "train": steps | {"zero_terminal_snr": True}}) != plain


def test_consistent_noise_is_the_same_in_every_epoch(losses):
    """With a rate of 0 the same noise and level give a picture the same loss in each of its epochs."""
    still = {"lr": 0.0, "timestep_type": "one_step", "batch_size": 6, "steps": 6}
    # Three buckets: an epoch is three steps, the next one repeats them in another order.
    drawn = losses({"train": still})
    assert sorted(drawn[:3]) != pytest.approx(sorted(drawn[3:]), rel=1e-3)
    frozen = losses({"train": still | {"force_consistent_noise": True}})
    assert sorted(frozen[:3]) == pytest.approx(sorted(frozen[3:]), rel=1e-5)


def test_pixels_can_be_scaled_where_none_are_cached(tmp_path, model):
    def run(name: str, **train: Any) -> list[float]:
        folder = tmp_path / name
        datasets = [{"folder_path": str(folder / "data"), "resolution": 32}]
        return outcome(folder, model, {"datasets": datasets, "train": train})["losses"]

    assert run("a", img_multiplier=0.5) != run("b")


def test_settings_of_regularisation_count(tmp_path, model):
    def run(name: str, **train: Any) -> list[float]:
        folder = tmp_path / name
        datasets = [
            {"folder_path": str(folder / "data"), "resolution": 32, "is_reg": True, "cache_latents": True}
        ]
        return outcome(folder, model, {"datasets": datasets, "train": train})["losses"]

    plain = run("plain")
    halved = run("halved", reg_weight=0.5)
    assert halved[0] == pytest.approx(plain[0] / 2, rel=1e-5)
    assert run("style", content_or_style_reg="style") != plain
