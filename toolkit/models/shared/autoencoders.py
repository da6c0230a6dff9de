"""Autoencoders by themselves: load or build one, measure its latents, save it.

Legend: N pictures, H W image rows and columns.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from toolkit.errors import ModelError, Problem
from toolkit.models.shared.components import cast_copy, load_component
from toolkit.models.shared.initialisation import init_autoencoder
from toolkit.runs import atomic
from toolkit.seeding import keyed_generator


def load_autoencoder(path: Path, *, from_config: bool = False, seed: int = 0) -> AutoencoderKL:
    """The AutoencoderKL of a folder in diffusers' layout (its own, or a pipeline's `vae/`), float32.

    from_config: random weights drawn from `seed` where config.json alone is needed. Raises ModelError.
    """
    folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
    if not (folder / "config.json").is_file():
        problem = Problem(
            "model.no_vae", "no autoencoder here: neither vae/config.json nor config.json", file=str(path)
        )
        raise ModelError(problem)
    if from_config:
        built: AutoencoderKL = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
        init_autoencoder(built, keyed_generator("init", seed, "vae"))
        return built
    vae: AutoencoderKL = load_component(AutoencoderKL, folder, dtype=torch.float32, name=str(path))
    return vae


@torch.no_grad()
def latent_std(vae: AutoencoderKL, pixels: Tensor, batch_size: int = 16) -> float:
    """Standard deviation of the latents of pixels (N, 3, H, W) in [-1, 1]; scaling_factor is its inverse.

    Rombach et al. 2022 (arXiv:2112.10752), appendix G: latents are rescaled to unit standard deviation.
    """
    parts = [
        vae.encode(part.to(vae.device, vae.dtype)).latent_dist.mode().float()
        for part in pixels.split(batch_size)
    ]
    return float(torch.cat(parts).std())


def save_autoencoder(vae: AutoencoderKL, folder: Path, *, dtype: torch.dtype) -> Path:
    """Write the autoencoder as a folder in diffusers' layout, cast to dtype; returns the folder.

    Raises RunError if the disk refuses.
    """
    copied = cast_copy(vae, dtype)
    with atomic.writing_folder(folder) as beside:
        copied.save_pretrained(beside)  # type: ignore[operator]
        for path in beside.iterdir():
            path.chmod(0o644)
    return folder
