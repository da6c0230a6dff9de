"""What can be known of a model from its configuration files alone, before any weights load. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path

from toolkit.models.catalogue import ArchitectureEntry

# What all published Stable Diffusion and Flux autoencoders shrink by.
VAE_MULTIPLE = 8


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
