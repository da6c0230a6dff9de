"""Stable Diffusion 1.x in one file, in the key layout of the original (LDM) checkpoints."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from toolkit.models.sd15.model import Components
from toolkit.models.shared.components import load_component, read_json
from toolkit.models.shared.hub import download_folder, find_model, refuse
from toolkit.paths import ASSETS_ROOT

SD15_CONFIG = ASSETS_ROOT / "sd15_config"
# The tokenizer that Stable Diffusion 1.x was trained with; a single file does not hold it.
CLIP_REPO = "openai/clip-vit-large-patch14"
_TE_KEY = "model.te_name_or_path"
_TOKENIZER_FILES = ["tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json"]
_SDXL_MARK = "conditioner.embedders.1."
_SD2_MARK = "cond_stage_model.model."
_UNET_MARK = "model.diffusion_model.input_blocks.0.0.weight"


def load_single_file(
    path: Path, *, dtype: torch.dtype, config_dir: Path | None = None, te_name_or_path: str | None = None
) -> Components:
    """The components of a file. Raises ModelError.

    config_dir: diffusers configs of its shape (None: those of SD 1.5); a tokenizer/ in it, or beside the
    file, is used before CLIP's own from the hub. te_name_or_path: tokenizer and text encoder from elsewhere.
    """
    from diffusers import StableDiffusionPipeline
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    _check_keys(path)
    config = config_dir or SD15_CONFIG
    text = _text_components(path, config, te_name_or_path, dtype=dtype)
    try:
        pipeline = StableDiffusionPipeline.from_single_file(
            str(path),
            config=str(config),
            torch_dtype=dtype,
            local_files_only=True,
            safety_checker=None,
            feature_extractor=None,
            **text,
        )
    except SingleFileComponentError as error:
        remedy = f"name a text encoder with {_TE_KEY}" if "CLIPTextModel" in str(error) else None
        refuse(str(path), f"is not complete: {str(error).splitlines()[0]}", remedy=remedy)
    except NotImplementedError:
        # The weights that the file lacks stayed empty, and could not be moved.
        refuse(str(path), "lacks some of the weights of Stable Diffusion 1.x")
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        refuse(str(path), f"cannot be loaded as Stable Diffusion 1.x: {error}")
    for name in ("unet", "vae", "text_encoder"):
        _check_complete(getattr(pipeline, name), path, name)
    scheduler = read_json(config / "scheduler" / "scheduler_config.json", str(path))
    return Components(
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        scheduler_config={key: value for key, value in scheduler.items() if not key.startswith("_")},
    )


def load_autoencoder_file(path: Path, *, dtype: torch.dtype) -> Any:
    """The autoencoder of SD 1.x's shape in a file, in the original or diffusers' keys. Raises ModelError."""
    from diffusers import AutoencoderKL

    try:
        vae = AutoencoderKL.from_single_file(
            str(path), config=str(SD15_CONFIG), subfolder="vae", torch_dtype=dtype, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        refuse(str(path), f"cannot be loaded as an autoencoder: {error}", key="model.vae_path")
    _check_complete(vae, path, "vae")
    return vae


def _check_keys(path: Path) -> None:
    """Refuse a .safetensors file that is damaged or holds something else, before gigabytes are read."""
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
    except (SafetensorError, OSError) as error:
        refuse(str(path), f"is not a readable .safetensors file: {error}")
    if any(key.startswith(_SDXL_MARK) for key in keys):
        refuse(str(path), "holds Stable Diffusion XL, not 1.x", remedy="set model.arch: sdxl")
    if any(key.startswith(_SD2_MARK) for key in keys):
        refuse(str(path), "holds Stable Diffusion 2.x, not 1.x", remedy="set model.arch: sd2")
    if any("lora_" in key for key in keys):
        refuse(str(path), "holds a LoRA, not a whole model", remedy="name the base model it was trained on")
    if _UNET_MARK not in keys:
        refuse(str(path), f"holds no Stable Diffusion 1.x model (no {_UNET_MARK})")


def _text_components(
    path: Path, config: Path, te_name_or_path: str | None, *, dtype: torch.dtype
) -> dict[str, Any]:
    """The tokenizer, and the text encoder where it comes from elsewhere, as keywords of from_single_file."""
    from toolkit.models.sd15.loading import load_tokenizer

    if te_name_or_path is None:
        for folder in (config / "tokenizer", path.parent / "tokenizer"):
            if folder.is_dir():
                return {"tokenizer": load_tokenizer(folder, str(path))}
        return {"tokenizer": load_tokenizer(_clip_tokenizer_folder(), CLIP_REPO)}
    from transformers import CLIPTextModel

    root = find_model(te_name_or_path, key=_TE_KEY)
    if root is None:
        patterns = [*_TOKENIZER_FILES, "config.json", "*.safetensors", "text_encoder/*", "tokenizer/*"]
        root = download_folder(te_name_or_path, patterns, key=_TE_KEY)
    encoder = root / "text_encoder" if (root / "text_encoder").is_dir() else root
    tokenizer = root / "tokenizer" if (root / "tokenizer").is_dir() else root
    return {
        "text_encoder": load_component(CLIPTextModel, encoder, dtype=dtype, name=te_name_or_path),
        "tokenizer": load_tokenizer(tokenizer, te_name_or_path),
    }


def _clip_tokenizer_folder() -> Path:
    """CLIP's tokenizer files from the hub or its cache. Raises ModelError with the ways around it."""
    return download_folder(CLIP_REPO, _TOKENIZER_FILES, key="model.name_or_path")


def _check_complete(module: nn.Module, path: Path, name: str) -> None:
    """Refuse a component of which the file held only a part."""
    missing = [key for key, value in module.state_dict().items() if value.is_meta]
    if missing:
        refuse(str(path), f"lacks {len(missing)} weights of its {name}, first {missing[0]}")
