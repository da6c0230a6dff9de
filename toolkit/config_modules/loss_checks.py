"""Checks of noise, noise levels and loss: settings that are fine alone and wrong together."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.config_modules.base import Location
from toolkit.config_modules.process import DiffusionProcess
from toolkit.config_modules.train import TrainConfig
from toolkit.paths import resolve_path

Finding = tuple[Location, str, str, str | None]

_CONFLICT = "config.conflict"
# Weightings that are one choice: each says how much a noise level counts.
_SNR_WEIGHTS = ("min_snr_gamma", "snr_gamma", "debiased_estimation_loss")
# Terms that need the base model's own prediction.
_PRIORS = (
    "diff_output_preservation", "blank_prompt_preservation", "inverted_mask_prior", "correct_pred_norm",
)  # fmt: skip

_PARAMETERS = {
    "diff_output_preservation": ("diff_output_preservation_multiplier", "diff_output_preservation_class"),
    "do_differential_guidance": ("differential_guidance_scale",),
    "do_guidance_loss": (
        "guidance_loss_target",
        "guidance_loss_schedule",
        "do_guidance_loss_cfg_zero",
        "unconditional_prompt",
    ),
}


def check_losses(process: DiffusionProcess) -> Iterator[Finding]:
    """Everything wrong between settings of noise, noise levels and loss, whatever the model predicts."""
    yield from _check_levels(process)
    yield from _check_priors(process)
    yield from _check_guidance(process)
    if process.train.diff_output_preservation:
        yield from _check_class(process)
    weights = _snr_weights(process)
    for key in weights[1:]:
        message = f"cannot be combined with train.{weights[0]}"
        yield ("train", key), _CONFLICT, message, "keep one of them"
    if process.train.img_multiplier != 1 and any(each.caches_latents for each in process.datasets):
        message = "cannot be combined with cached latents, which are of the pictures as they are"
        yield ("train", "img_multiplier"), _CONFLICT, message, "use latent_multiplier, or cache no latents"


def check_weights(process: DiffusionProcess, objective: str) -> Iterator[Finding]:
    """Weights and tables that what the model predicts (epsilon, v_prediction or flow) has no use for."""
    if objective == "flow":
        for key in _snr_weights(process):
            message = "is defined for ddpm noise, not for flowmatch"
            yield ("train", key), _CONFLICT, message, "leave it out"
    if process.train.zero_terminal_snr and objective != "v_prediction":
        message = f"needs a model that predicts v, this one predicts {objective}"
        remedy = "leave it out, or set model.prediction_type: v_prediction to train it anew"
        yield ("train", "zero_terminal_snr"), _CONFLICT, message, remedy


def unread_settings(process: DiffusionProcess) -> dict[str, str]:
    """Keys of `train` that have no effect beside the others -> why."""
    train = process.train
    unread: dict[str, str] = {}
    for switch in (*_PRIORS, "do_differential_guidance", "do_guidance_loss"):
        if not getattr(train, switch):
            keys = _PARAMETERS.get(switch, (f"{switch}_multiplier",))
            unread |= dict.fromkeys(keys, f"only counts with {switch}")
    if train.loss_type in ("mse", "mae"):
        unread |= dict.fromkeys(("huber_c", "huber_schedule"), "only counts with a Huber loss_type")
    if train.loss_type != "wavelet":
        unread["wavelet_detail"] = "only counts with loss_type: wavelet"
    unread |= _unread_guidance(train)
    if train.timestep_type != "shift":
        unread["discrete_flow_shift"] = "only counts with timestep_type: shift"
    if not any(dataset.is_reg for dataset in process.datasets):
        reason = "no dataset has is_reg"
        unread |= dict.fromkeys(("reg_weight", "content_or_style_reg"), reason)
    if not any(dataset.has_masks for dataset in process.datasets):
        unread["normalize_masked_loss"] = "no dataset has masks"
    if train.multires_noise_iterations == 0:
        unread["multires_noise_discount"] = "only counts with multires_noise_iterations"
    return unread


def _unread_guidance(train: TrainConfig) -> dict[str, str]:
    """Keys of guidance while training that have no effect."""
    if not (train.do_cfg or train.do_random_cfg):
        keys = ("cfg_scale", "max_cfg_scale", "cfg_rescale", "negative_prompt")
        return dict.fromkeys(keys, "only counts with do_cfg or do_random_cfg")
    if not train.do_random_cfg:
        return {"max_cfg_scale": "only counts with do_random_cfg"}
    if train.max_cfg_scale is not None:
        return {"cfg_scale": "do_random_cfg draws up to max_cfg_scale"}
    return {}


def _check_guidance(process: DiffusionProcess) -> Iterator[Finding]:
    train = process.train
    if (train.do_cfg or train.do_random_cfg) and train.largest_cfg_scale == 1:
        key = "do_random_cfg" if train.do_random_cfg else "do_cfg"
        message = "does nothing at a scale of 1"
        yield ("train", key), _CONFLICT, message, "set cfg_scale, 3 for example"
    yield from _check_negatives(train)
    paired = train.optimal_noise_pairing_samples > 1
    uncached = [
        each for each in process.datasets if not each.cache_latents and not each.cache_latents_to_disk
    ]
    if paired and uncached:
        message = "needs cached latents, which the noises are compared with"
        location = ("train", "optimal_noise_pairing_samples")
        yield location, _CONFLICT, message, "set cache_latents: true for every dataset"
    if paired and train.force_consistent_noise:
        message = "cannot be combined with force_consistent_noise"
        yield ("train", "optimal_noise_pairing_samples"), _CONFLICT, message, "keep one of them"


def _check_negatives(train: TrainConfig) -> Iterator[Finding]:
    """A text file of negative prompts must be there and hold one."""
    written = train.negative_prompt
    if written is None or not written.lower().endswith(".txt"):
        return
    path = resolve_path(written)
    if not path.is_file():
        yield ("train", "negative_prompt"), "config.missing_file", f"file {written} does not exist", None
    elif not path.read_text(encoding="utf-8", errors="replace").strip():
        yield ("train", "negative_prompt"), "config.no_prompts", f"{written} holds no prompt", None


def _snr_weights(process: DiffusionProcess) -> list[str]:
    return [key for key in _SNR_WEIGHTS if getattr(process.train, key) not in (None, "off")]


def _check_levels(process: DiffusionProcess) -> Iterator[Finding]:
    train = process.train
    if train.min_denoising_steps > train.max_denoising_steps:
        message = f"is above max_denoising_steps ({train.max_denoising_steps}): no noise level is left"
        yield ("train", "min_denoising_steps"), "config.bad_value", message, None
    for key in ("linear_timesteps", "linear_timesteps2"):
        if getattr(train, key) and train.timestep_type != "linear":
            message = f"draws noise levels evenly and cannot be combined with {train.timestep_type}"
            yield ("train", "timestep_type"), _CONFLICT, message, f"leave it or {key} out"
    if train.linear_timesteps and train.linear_timesteps2:
        message = "cannot be combined with train.linear_timesteps"
        yield ("train", "linear_timesteps2"), _CONFLICT, message, "keep one of them"


def _check_priors(process: DiffusionProcess) -> Iterator[Finding]:
    """Terms that hold the trained model to its base: the base must still be there."""
    wanted = [key for key in _PRIORS if getattr(process.train, key)]
    for key in wanted:
        if process.network is None:
            message = "needs a network: a full fine-tune has no base model left to compare with"
            yield ("train", key), _CONFLICT, message, "add a network section, or leave it out"
        elif process.train.train_text_encoder:
            message = "cannot be combined with train_text_encoder: the base's embeddings would move"
            yield ("train", key), _CONFLICT, message, "keep one of them"
    if "inverted_mask_prior" in wanted and not any(dataset.has_masks for dataset in process.datasets):
        message = "needs masks, and no dataset has any"
        remedy = "set mask_path or alpha_mask for a dataset, or leave it out"
        yield ("train", "inverted_mask_prior"), _CONFLICT, message, remedy
    if {"diff_output_preservation", "blank_prompt_preservation"} <= set(wanted):
        message = "cannot be combined with diff_output_preservation"
        yield ("train", "blank_prompt_preservation"), _CONFLICT, message, "keep one of them"


def _check_class(process: DiffusionProcess) -> Iterator[Finding]:
    """Preservation by class needs a word to replace and one to put there."""
    if not process.trigger_word:
        message = "needs trigger_word: the word that the class word stands in for"
        yield ("train", "diff_output_preservation"), "config.missing_key", message, "set trigger_word"
    if not process.train.diff_output_preservation_class:
        message = "needs diff_output_preservation_class, such as person"
        yield ("train", "diff_output_preservation"), "config.missing_key", message, None
