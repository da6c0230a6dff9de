"""Stable Diffusion 1.x in one file, in the key layout of the original (LDM) checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toolkit.models.file_keys import SD15_FILE
from toolkit.models.shared.families import Components, load_text_parts, read_scheduler
from toolkit.models.shared.original_keys import original_clip, original_unet, original_vae
from toolkit.models.shared.single_files import check_keys, find_clip_tokenizers, load_pipeline_file
from toolkit.paths import ASSETS_ROOT

if TYPE_CHECKING:
    from toolkit.models.shared.families import Family

SD15_CONFIG = ASSETS_ROOT / "sd15_config"


def load_single_file(
    path: Path,
    family: Family,
    *,
    dtype: torch.dtype,
    config_dir: Path | None = None,
    te_name_or_path: str | None = None,
) -> Components:
    """The components of a file. Raises ModelError.

    config_dir: diffusers configs of its shape (None: those of SD 1.5); a tokenizer/ in it, or beside the
    file, is used before CLIP's own from the hub. te_name_or_path: tokenizer and text encoder from elsewhere.
    """
    check_keys(path, SD15_FILE)
    config = config_dir or SD15_CONFIG
    encoders: dict[str, Any] = {}
    if te_name_or_path is None:
        tokenizers = find_clip_tokenizers(path, config, {"tokenizer": {}})
    else:
        encoders, tokenizers = load_text_parts(te_name_or_path, family, dtype=dtype)
    given = {"safety_checker": None, "feature_extractor": None, **encoders, **tokenizers}
    modules = load_pipeline_file(path, family, config, given, dtype=dtype)
    return Components(modules, tokenizers, read_scheduler(config, str(path)))


def ldm_state_dict(unet: nn.Module, vae: nn.Module, text_encoder: nn.Module) -> dict[str, Tensor]:
    """The weights under the keys of the original Stable Diffusion 1.x checkpoints."""
    weights = {f"model.diffusion_model.{key}": value for key, value in original_unet(unet).items()}
    weights |= {f"first_stage_model.{key}": value for key, value in original_vae(vae).items()}
    prefix = "cond_stage_model.transformer"
    weights |= {f"{prefix}.{key}": value for key, value in original_clip(text_encoder).items()}
    return weights
