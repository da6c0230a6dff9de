"""What can be known of a model from its configuration files alone, before any weights load. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path

from toolkit.errors import ModelError
from toolkit.models.catalogue import ARCHITECTURES, ArchitectureEntry, pipeline_architecture
from toolkit.paths import resolve_model

# What all published Stable Diffusion and Flux autoencoders shrink by.
VAE_MULTIPLE = 8
# Keys that only files of an architecture have, in the layouts of their first publication.
_FILE_MARKS = {
    "conditioner.embedders.1.model.ln_final.weight": "sdxl",
    "double_blocks.0.img_mod.lin.weight": "flux",
    "model.diffusion_model.double_blocks.0.img_mod.lin.weight": "flux",
}


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file, or {} if there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _halvings(config: Path) -> int | None:
    """How often a network of blocks halves its input, from its config file; None if that cannot be read."""
    blocks = read_json(config).get("block_out_channels")
    return len(blocks) - 1 if isinstance(blocks, list) and blocks else None


def size_multiple(model: Path | None, architecture: ArchitectureEntry) -> int:
    """Sides of pictures for the denoiser must be multiples of this many pixels.

    model: a folder in diffusers' layout; for a single file or a hub id that of the published models holds.
    """
    default = architecture.size_multiple
    if model is None or not model.is_dir():
        return default
    vae = _halvings(model / "vae" / "config.json")
    if architecture.patch is not None:
        return default if vae is None else int(2**vae) * architecture.patch
    unet = _halvings(model / "unet" / "config.json")
    return default if vae is None or unet is None else int(2 ** (vae + unet))


def vae_size_multiple(model: Path, default: int = VAE_MULTIPLE) -> int:
    """Sides of pictures for the autoencoder alone; `model` may be its own folder."""
    for config in (model / "vae" / "config.json", model / "config.json"):
        halvings = _halvings(config)
        if halvings is not None:
            return int(2**halvings)
    return default


def infer_architecture(name_or_path: str) -> str:
    """The architecture of a model that nobody named: what is found locally, else that of Stable Diffusion 1.x."""
    held = held_architecture(resolve_model(name_or_path))
    return held.name if held is not None and held.supported else "sd15"


def held_architecture(model: Path | None) -> ArchitectureEntry | None:
    """What a folder's pipeline class or a single file's keys say the model is; None if they do not tell."""
    if model is None:
        return None
    if model.is_dir():
        return pipeline_architecture(str(read_json(model / "model_index.json").get("_class_name")))
    if model.suffix != ".safetensors" or not model.is_file():
        return None
    from toolkit.metadata import read_header  # here, as most jobs never need it

    try:
        keys = read_header(model)
    except ModelError:
        return None  # told where the file is loaded, with what it should have been
    return next((ARCHITECTURES[arch] for mark, arch in _FILE_MARKS.items() if mark in keys), None)
