"""Settings that mean nothing to a slider: refused where they would be missed, else told. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.config_modules.base import Location, Section, is_set
from toolkit.config_modules.datasets import DatasetConfig
from toolkit.config_modules.explain import shown
from toolkit.config_modules.loop import LoopConfig
from toolkit.config_modules.process import ConceptSliderProcess, DiffusionProcess, SliderProcess
from toolkit.paths import resolve_path

Finding = tuple[Location, str, str, str | None]

_TRAIN = frozenset(LoopConfig.model_fields) | {
    "unet_lr", "text_encoder_lr", "train_unet", "train_text_encoder", "noise_scheduler", "timestep_type",
    "cache_text_embeddings", "zero_terminal_snr",
}  # fmt: skip
# What a slider on pictures takes from its batches.
_NOISE = {
    "discrete_flow_shift", "content_or_style", "min_denoising_steps", "max_denoising_steps", "noise_offset",
    "multires_noise_iterations", "multires_noise_discount", "ip_noise_gamma", "force_consistent_noise",
    "noise_multiplier", "random_noise_multiplier", "random_noise_shift", "normalize_masked_loss",
}  # fmt: skip
_CAPTIONS = frozenset({
    "caption_ext", "default_caption", "caption_dropout_rate", "is_reg", "use_short_captions", "replacements",
    "random_triggers", "random_triggers_max", "shuffle_tokens", "token_dropout_rate", "keep_tokens",
    "caption_variants",
})  # fmt: skip
_DATASET = _CAPTIONS | {
    "folder_path", "resolution", "buckets", "bucket_tolerance", "square_crop", "random_crop", "random_scale",
    "scale", "poi", "cached_crops", "flip_x", "flip_y", "alpha_color", "num_repeats", "loss_multiplier",
    "strict", "mask_path", "alpha_mask", "invert_mask", "mask_min_value", "control_path", "control_path_1",
    "control_path_2", "control_path_3", "control_transparent_color", "full_size_control_images",
    "cache_latents", "cache_latents_to_disk", "trigger_word", "cache_text_embeddings",
}  # fmt: skip
_OWN_LOSS = "a slider has a loss of its own"


def check_slider(process: DiffusionProcess) -> Iterator[Finding]:
    """Settings that a slider would ignore, and files that it misses."""
    if isinstance(process, ConceptSliderProcess):
        yield from _refused(("train",), process.train, _TRAIN | _NOISE, _OWN_LOSS)
        for index, dataset in enumerate(process.datasets):
            yield from _refused(("datasets", index), dataset, _DATASET, _OWN_LOSS)
    elif isinstance(process, SliderProcess):
        yield from _refused(("train",), process.train, _TRAIN, _OWN_LOSS)
        file = process.slider.prompt_file
        if file is not None and not resolve_path(file).is_file():
            message = f"file {file} does not exist"
            yield ("slider", "prompt_file"), "config.missing_file", message, None


def unread_by_slider(process: ConceptSliderProcess) -> dict[Location, tuple[Section, str]]:
    """Settings of captions, which are not read: location -> (section, reason)."""
    reason = "a slider takes its prompts from `slider`, not from captions"
    return {
        ("datasets", index, key): (dataset, reason)
        for index, dataset in enumerate(process.datasets)
        for key in sorted(_CAPTIONS & DatasetConfig.model_fields.keys())
    }


def _refused(prefix: Location, section: Section, known: frozenset[str], reason: str) -> Iterator[Finding]:
    for key in type(section).model_fields:
        if key not in known and is_set(section, key):
            message = f"{shown(getattr(section, key))} means nothing here: {reason}"
            yield (*prefix, key), "config.conflict", message, "leave it out"
