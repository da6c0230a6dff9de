"""Settings of noise, noise levels and loss that do not go together, or have no effect."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from testing.config_helpers import load, problems_of

pytestmark = pytest.mark.usefixtures("folder")

NETWORK = {"type": "lora", "linear": 4}
PRESERVING = {"diff_output_preservation": True, "diff_output_preservation_class": "dog"}


def job(train: dict[str, Any], **changes: Any) -> str:
    entry = {
        "type": "sd_trainer", "training_folder": "output", "model": {"name_or_path": "some/model"},
        "datasets": [{"folder_path": "pictures"}], "network": NETWORK, "trigger_word": "zwx", "train": train,
    }  # fmt: skip
    entry = {key: value for key, value in (entry | changes).items() if value is not None}
    return yaml.safe_dump({"job": "train", "config": {"name": "run", "process": [entry]}}, sort_keys=False)


MASKED = [{"folder_path": "pictures", "alpha_mask": True}]
FLOW = {"noise_scheduler": "flowmatch"}
WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"min_snr_gamma": 5, "snr_gamma": 5}, {}, "train.snr_gamma"),
    ({"min_snr_gamma": 5, "debiased_estimation_loss": True}, {}, "train.debiased_estimation_loss"),
    ({"snr_gamma": 5} | FLOW, {}, "train.snr_gamma"),
    ({"debiased_estimation_loss": "kohya"} | FLOW, {}, "train.debiased_estimation_loss"),
    ({"min_denoising_steps": 500, "max_denoising_steps": 499}, {}, "train.min_denoising_steps"),
    ({"linear_timesteps": True, "timestep_type": "sigmoid"}, {}, "train.timestep_type"),
    ({"linear_timesteps": True, "linear_timesteps2": True}, {}, "train.linear_timesteps2"),
    ({"zero_terminal_snr": True}, {}, "train.zero_terminal_snr"),
    ({"zero_terminal_snr": True} | FLOW, {}, "train.zero_terminal_snr"),
    (PRESERVING, {"network": None}, "train.diff_output_preservation"),
    (PRESERVING, {"trigger_word": None}, "train.diff_output_preservation"),
    (PRESERVING | {"train_text_encoder": True}, {}, "train.diff_output_preservation"),
    ({"diff_output_preservation": True}, {}, "train.diff_output_preservation"),
    (PRESERVING | {"blank_prompt_preservation": True}, {}, "train.blank_prompt_preservation"),
    ({"inverted_mask_prior": True}, {"network": None, "datasets": MASKED}, "train.inverted_mask_prior"),
    ({"inverted_mask_prior": True}, {}, "train.inverted_mask_prior"),
    (
        {"img_multiplier": 0.9},
        {"datasets": [{"folder_path": "pictures", "cache_latents": True}]},
        "train.img_multiplier",
    ),
    ({"do_cfg": True}, {}, "train.do_cfg"),
    ({"do_random_cfg": True}, {}, "train.do_random_cfg"),
    ({"do_cfg": True, "cfg_scale": 3, "negative_prompt": "none.txt"}, {}, "train.negative_prompt"),
    ({"do_cfg": True, "cfg_scale": 3, "max_negative_prompts": 2}, {}, "train.max_negative_prompts"),
    ({"correct_pred_norm": True}, {"network": None}, "train.correct_pred_norm"),
    ({"optimal_noise_pairing_samples": 4}, {}, "train.optimal_noise_pairing_samples"),
    (
        {"optimal_noise_pairing_samples": 4, "force_consistent_noise": True},
        {"datasets": [{"folder_path": "pictures", "cache_latents": True}]},
        "train.optimal_noise_pairing_samples",
    ),
]


@pytest.mark.parametrize(("train", "changes", "key"), WRONG)
def test_what_does_not_go_together_is_told(train, changes, key):
    [problem] = problems_of(job(train, **changes))
    assert problem.key.endswith(key), problem


RIGHT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (PRESERVING, {}),
    ({"blank_prompt_preservation": True}, {"trigger_word": None}),
    ({"debiased_estimation_loss": False, "min_snr_gamma": 5}, {}),
    ({"zero_terminal_snr": True}, {"model": {"name_or_path": "m/m", "prediction_type": "v_prediction"}}),
    ({"linear_timesteps": True}, {}),
    ({"linear_timesteps2": True} | FLOW, {}),
    ({"max_denoising_steps": 1000}, {}),
    ({"do_cfg": True, "cfg_scale": 3, "negative_prompt": "blurry, dark"}, {}),
    ({"do_guidance_loss": True, "guidance_loss_target": [2, 5]}, {}),
    ({"inverted_mask_prior": True}, {"datasets": MASKED}),
]


@pytest.mark.parametrize(("train", "changes"), RIGHT)
def test_what_goes_together_passes(train, changes):
    load(job(train, **changes))


def test_a_bell_draws_evenly_also_for_flow_matching():
    train = load(job({"linear_timesteps": True} | FLOW)).config.process[0].train
    assert train.timestep_type == "linear"


@pytest.mark.parametrize("value", [True, "exact"])
def test_the_switch_of_debiasing_is_its_exact_form(value):
    train = load(job({"debiased_estimation_loss": value})).config.process[0].train
    assert train.debiased_estimation_loss == "exact"


UNREAD: list[tuple[dict[str, Any], str]] = [
    ({"huber_c": 0.2}, "huber_c: 0.2 has no effect: only counts with a Huber loss_type"),
    ({"huber_c": 0.2, "loss_type": "huber"}, ""),
    ({"discrete_flow_shift": 2, "timestep_type": "linear"}, "discrete_flow_shift: 2.0 has no effect"),
    ({"reg_weight": 0.5}, "reg_weight: 0.5 has no effect: no dataset has is_reg"),
    ({"differential_guidance_scale": 2}, "only counts with do_differential_guidance"),
    ({"diff_output_preservation_class": "dog"}, "only counts with diff_output_preservation"),
    ({"wavelet_detail": 3}, "only counts with loss_type: wavelet"),
    ({"cfg_scale": 3}, "cfg_scale: 3.0 has no effect: only counts with do_cfg or do_random_cfg"),
    ({"negative_prompt": "x"}, "only counts with do_cfg or do_random_cfg"),
    ({"do_cfg": True, "cfg_scale": 3, "max_cfg_scale": 5}, "only counts with do_random_cfg"),
    ({"do_random_cfg": True, "cfg_scale": 3, "max_cfg_scale": 5}, "draws up to max_cfg_scale"),
    ({"guidance_loss_schedule": "sigma"}, "only counts with do_guidance_loss"),
    ({"unconditional_prompt": "x"}, "only counts with do_guidance_loss"),
    ({"normalize_masked_loss": False}, "normalize_masked_loss: false has no effect: no dataset has masks"),
    ({"multires_noise_discount": 0.5}, "only counts with multires_noise_iterations"),
]


@pytest.mark.parametrize(("train", "note"), UNREAD)
def test_what_has_no_effect_is_said(train, note):
    notes = "\n".join(load(job(train)).notes)
    assert (note in notes) if note else ("no effect" not in notes)


# -- the network's own settings ----------------------------------------------------------------------------


def test_lora_plus_is_for_loras():
    network = {"type": "loha", "network_kwargs": {"loraplus_lr_ratio": 16}}
    [problem] = problems_of(job({}, network=network))
    assert problem.key.endswith("network_kwargs.loraplus_lr_ratio")
    load(job({}, network=network | {"type": "dora"}))


@pytest.mark.parametrize(
    ("network", "ranks"),
    [
        ({"type": "lora"}, (None, None)),
        ({"type": "lora", "conv": 4}, (4, 4.0)),
        ({"type": "lycoris", "linear": 8, "linear_alpha": 2}, (8, 2.0)),
        ({"type": "locon", "linear": 8, "conv": 4, "conv_alpha": 1}, (4, 1.0)),
    ],
)
def test_ranks_of_convolutions(network, ranks):
    section = load(job({}, network=network)).config.process[0].network
    assert (section.conv_rank, section.convolution_alpha) == ranks


@pytest.mark.parametrize(
    ("network", "note"),
    [
        ({"type": "lora", "lokr_factor": 8}, "lokr_factor: 8 has no effect: only counts with type: lokr"),
        ({"type": "lokr", "lokr_full_rank": True, "linear": 8}, "linear: 8 has no effect"),
        ({"type": "lora", "conv_alpha": 2}, "conv_alpha: 2.0 has no effect: only counts with conv"),
        ({"type": "lokr", "lokr_factor": 8}, ""),
    ],
)
def test_network_settings_without_effect_are_said(network, note):
    notes = "\n".join(load(job({}, network=network)).notes)
    assert (note in notes) if note else ("no effect" not in notes)
