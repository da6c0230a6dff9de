"""Between pictures and latents, for every architecture whose autoencoder is an AutoencoderKL.

Legend: B batch, C latent channels, H W image rows and columns, h w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def onto(values: Tensor, weight: Tensor) -> Tensor:
    """values with the device and dtype of a weight, without making the host wait for an accelerator."""
    return values.to(weight.device, weight.dtype, non_blocking=weight.device.type != "cpu")


@contextmanager
def full_precision(vae: AutoencoderKL) -> Iterator[None]:
    """Let an autoencoder compute in its weights' own dtype, and in float32 where half precision overflows.

    Autocast does not reach what happens inside. float16 weights are float32 meanwhile if the autoencoder's
    config says force_upcast, as that of SDXL does.
    """
    weight = next(vae.parameters())
    dtype, upcast = weight.dtype, weight.dtype == torch.float16 and bool(vae.config.force_upcast)
    with torch.autocast(weight.device.type, enabled=False):
        if upcast:
            nn.Module.to(vae, torch.float32)  # diffusers' own `to` warns each time
        try:
            yield
        finally:
            if upcast:
                nn.Module.to(vae, dtype)


def encode_images(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) float32, shifted and scaled.

    The mode of the posterior rather than a sample: its spread is tiny next to the noise of training, and
    the latents of a picture are then one fact, cached or not. Raises ValueError on another shape.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"pixels must be (B, 3, H, W), got {tuple(pixels.shape)}")
    latents = vae.encode(onto(pixels, next(vae.parameters()))).latent_dist.mode().float()
    return (latents - _shift(vae)) * vae.config.scaling_factor


def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """latents (B, C, h, w) -> pixels (B, 3, H, W) float32, about [-1, 1]."""
    unscaled = latents.float() / vae.config.scaling_factor + _shift(vae)
    return vae.decode(onto(unscaled, next(vae.parameters()))).sample.float()


def vae_downscale(vae: AutoencoderKL) -> int:
    """Pixels per latent along a side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _shift(vae: AutoencoderKL) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0
