"""Stable Diffusion XL in one file, in the key layout of the original (SGM) checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toolkit.models.file_keys import SDXL_FILE
from toolkit.models.shared.families import Components, load_text_parts, read_scheduler
from toolkit.models.shared.original_keys import (
    original_clip,
    original_open_clip,
    original_unet,
    original_vae,
)
from toolkit.models.shared.schedules import ZERO_TERMINAL_SNR
from toolkit.models.shared.single_files import check_keys, find_clip_tokenizers, load_pipeline_file
from toolkit.paths import ASSETS_ROOT

if TYPE_CHECKING:
    from toolkit.models.shared.families import Family

SDXL_CONFIG = ASSETS_ROOT / "sdxl_config"
# Transformer blocks of the UNet's deepest input block -> configs; 10 in Stable Diffusion XL itself.
SMALLER_CONFIGS = {4: ASSETS_ROOT / "ssd_config", 2: ASSETS_ROOT / "vega_config"}
_DEEPEST = re.compile(r"^model\.diffusion_model\.input_blocks\.8\.1\.transformer_blocks\.(\d+)\.")
# OpenCLIP pads with zeros and not with its end mark; so does the second encoder's tokenizer.
_TOKENIZERS: dict[str, dict[str, Any]] = {"tokenizer": {}, "tokenizer_2": {"pad_token": "!"}}
# Empty tensors by which a file tells other programs that it predicts velocity, and begins at pure noise.
_SAYS_VELOCITY, _SAYS_ZERO_TERMINAL_SNR = "v_pred", "ztsnr"


def load_single_file(
    path: Path,
    family: Family,
    *,
    dtype: torch.dtype,
    config_dir: Path | None = None,
    te_name_or_path: str | None = None,
) -> Components:
    """The components of a file. Raises ModelError.

    config_dir: diffusers configs of its shape (None: those of SDXL, SSD-1B or Vega, as the file's keys tell);
    tokenizers in it, or beside the file, are used before CLIP's own from the hub. te_name_or_path: tokenizers
    and text encoders from elsewhere.
    """
    keys = check_keys(path, SDXL_FILE) or set()
    config = config_dir or _config_of(keys)
    encoders: dict[str, Any] = {}
    if te_name_or_path is None:
        tokenizers = find_clip_tokenizers(path, config, _TOKENIZERS)
    else:
        encoders, tokenizers = load_text_parts(te_name_or_path, family, dtype=dtype)
    modules = load_pipeline_file(path, family, config, {**encoders, **tokenizers}, dtype=dtype)
    scheduler = read_scheduler(config, str(path))
    if _SAYS_VELOCITY in keys:
        scheduler["prediction_type"] = "v_prediction"
    if _SAYS_VELOCITY in keys and _SAYS_ZERO_TERMINAL_SNR in keys:
        scheduler |= ZERO_TERMINAL_SNR
    return Components(modules, tokenizers, scheduler)


def _config_of(keys: set[str]) -> Path:
    """The bundled configs of the model that a file with these keys holds."""
    depth = len({match[1] for key in keys if (match := _DEEPEST.match(key))})
    return SMALLER_CONFIGS.get(depth, SDXL_CONFIG)


def sgm_state_dict(
    modules: dict[str, nn.Module], *, predicts_velocity: bool = False, zero_terminal_snr: bool = False
) -> dict[str, Tensor]:
    """The weights under the keys of the original Stable Diffusion XL checkpoints, with the marks of its schedule.

    modules: those of the pipeline, by their names there.
    """
    parts = {
        "model.diffusion_model": original_unet(modules["unet"]),
        "first_stage_model": original_vae(modules["vae"]),
        "conditioner.embedders.0.transformer": original_clip(modules["text_encoder"]),
        "conditioner.embedders.1.model": original_open_clip(modules["text_encoder_2"]),
    }
    weights = {f"{prefix}.{key}": value for prefix, part in parts.items() for key, value in part.items()}
    if predicts_velocity:
        weights[_SAYS_VELOCITY] = torch.empty(0)
    if predicts_velocity and zero_terminal_snr:
        weights[_SAYS_ZERO_TERMINAL_SNR] = torch.empty(0)
    return weights
