"""Stable Diffusion 1.x from a diffusers folder, a hub id, or a single file in the original key layout."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toolkit.errors import ModelError, Problem
from toolkit.models.catalogue import pipeline_architecture
from toolkit.models.sd15.model import SD15, Components
from toolkit.models.sd15.single_file import load_autoencoder_file, load_single_file
from toolkit.models.shared.components import (
    build_component,
    load_component,
    quiet_loading,
    read_json,
    weight_files,
)
from toolkit.models.shared.hub import download_folder, download_pipeline, find_model, refuse
from toolkit.models.shared.initialisation import init_autoencoder
from toolkit.seeding import keyed_generator, keyed_seed

_VAE_KEY = "model.vae_path"
_OWN_CLASS = "StableDiffusionPipeline"


def load(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    vae_path: str | None = None,
    from_config: bool = False,
    seed: int = 0,
    prediction_type: str | None = None,
    config_dir: Path | None = None,
    te_name_or_path: str | None = None,
) -> SD15:
    """A frozen model in eval mode. Raises ModelError with what to do.

    path: a diffusers folder, a hub id, or a .safetensors / .ckpt file; for a file config_dir may hold other
    configs (and a tokenizer) than those of SD 1.5, and te_name_or_path the text encoder it lacks.
    from_config: components whose folder holds no weights are built at random from `seed`; those with weights
    are loaded. prediction_type: epsilon, v_prediction or flow, None for what the scheduler's config says.
    """
    name = os.fspath(path)
    with quiet_loading():
        # Imported in the quiet: transformers warns that torchvision is missing, which nothing here needs.
        getattr(import_module("diffusers"), _OWN_CLASS)
        local = find_model(name)
        if from_config and (local is None or local.is_file()):
            refuse(name, "from_config needs a local folder with config files", key="model.from_config")
        if local is not None and local.is_file():
            components = load_single_file(
                local, dtype=dtype, config_dir=config_dir, te_name_or_path=te_name_or_path
            )
        else:
            folder = local or download_pipeline(name)
            components = _load_folder(folder, name, dtype=dtype, seed=seed if from_config else None)
        if vae_path is not None:
            components.vae = _load_vae(vae_path, dtype=dtype)
    if prediction_type is not None:
        components.scheduler_config["prediction_type"] = prediction_type
    try:
        model = SD15(components)
    except ValueError as error:
        problem = Problem("model.schedule", f"'{name}': {error}", key="model.prediction_type")
        raise ModelError(problem) from error
    return model.freeze().to(device)


def _load_folder(folder: Path, name: str, *, dtype: torch.dtype, seed: int | None) -> Components:
    """The components of a diffusers folder; with a seed, those without weights are built from configs."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    _check_class(folder, name, required=seed is None)
    classes: dict[str, type[Any]] = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
    }
    parts = {}
    for part, cls in classes.items():
        config = read_json(folder / part / "config.json", name)
        if seed is not None and not weight_files(folder / part):
            parts[part] = nn.Module.to(_build(part, cls, config, name, seed=seed), dtype)
        else:
            parts[part] = load_component(cls, folder / part, dtype=dtype, name=name)
    tokenizer = load_tokenizer(folder / "tokenizer", name)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", name)
    config = {key: value for key, value in scheduler.items() if not key.startswith("_")}
    return Components(**parts, tokenizer=tokenizer, scheduler_config=config)


def _check_class(folder: Path, name: str, *, required: bool) -> None:
    """Refuse a folder that is no diffusers model, or one of another architecture."""
    index = folder / "model_index.json"
    if not index.is_file():
        if required:
            refuse(
                name, f"is not a diffusers folder: {index} is missing", remedy="or name a .safetensors file"
            )
        return
    found = read_json(index, name).get("_class_name", _OWN_CLASS)
    if found == _OWN_CLASS:
        return
    entry = pipeline_architecture(found)
    remedy = f"set model.arch: {entry.name}" if entry is not None else None
    refuse(name, f"holds a {found}, not Stable Diffusion 1.x", remedy=remedy)


def _build(part: str, cls: type[Any], config: dict[str, Any], name: str, *, seed: int) -> Any:
    """One component with random weights; equal seeds give equal weights, whatever else is built."""
    try:
        module = build_component(cls, config, keyed_seed("init", seed, part))
    except (TypeError, ValueError) as error:
        refuse(name, f"{part}/config.json cannot be built: {error}")
    if part == "vae":
        init_autoencoder(module, keyed_generator("init", seed, part))
    return module


def load_tokenizer(folder: Path, name: str) -> Any:
    """CLIP's tokenizer from a folder. Raises ModelError."""
    from transformers import CLIPTokenizer

    if not folder.is_dir():
        refuse(name, f"is not a complete diffusers folder: {folder} is missing")
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        refuse(name, f"{folder} cannot be loaded: {error}")


def _load_vae(name: str, *, dtype: torch.dtype) -> Any:
    """Another autoencoder: a file, a folder (its own or a pipeline's), or a hub id. Raises ModelError."""
    from diffusers import AutoencoderKL

    local = find_model(name, key=_VAE_KEY)
    if local is not None and local.is_file():
        return load_autoencoder_file(local, dtype=dtype)
    if local is None:
        local = download_folder(name, ["config.json", "*.safetensors", "*.bin", "vae/*"], key=_VAE_KEY)
    folder = local / "vae" if (local / "vae" / "config.json").is_file() else local
    return load_component(AutoencoderKL, folder, dtype=dtype, name=name)
