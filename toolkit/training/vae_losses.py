"""The loss that trains an autoencoder: reconstruction at two scales, and a pull towards unit latents.

Legend: B batch, H W image rows and columns, C h w latent channels, rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from toolkit.data.items import Batch
from toolkit.diffusion.diffusion_loss import ItemLosses

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass(frozen=True, slots=True)
class VaeLossWeights:
    """Weights of the terms; each term is a mean over the picture's elements."""

    mse: float = 1.0
    mae: float = 0.0
    pooled_mse: float = 0.0
    kl: float = 1e-6


def vae_losses(vae: AutoencoderKL, batch: Batch, weights: VaeLossWeights) -> ItemLosses:
    """Per-item loss of reconstructing batch.pixels (B, 3, H, W) in [-1, 1].

    pooled_mse compares 4 x 4 averages, which keeps colours true early on. kl is the mean over latent
    elements of the divergence from a unit Gaussian (Kingma & Welling 2014, arXiv:1312.6114, appendix B).
    Latents are drawn from the posterior with the global generator, seeded per step by the trainer.
    """
    assert batch.pixels is not None
    pixels = batch.pixels.to(vae.device, vae.dtype, non_blocking=True)
    posterior = vae.encode(pixels).latent_dist
    decoded = vae.decode(posterior.sample()).sample.float()
    target = pixels.float()

    def mean(values: Tensor) -> Tensor:
        return values.flatten(1).mean(1)

    terms = weights.mse * mean((decoded - target) ** 2)
    if weights.mae:
        terms = terms + weights.mae * mean((decoded - target).abs())
    if weights.pooled_mse:
        pooled = F.avg_pool2d(decoded, 4) - F.avg_pool2d(target, 4)
        terms = terms + weights.pooled_mse * mean(pooled**2)
    if weights.kl:
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1.0 - posterior.logvar)
        terms = terms + weights.kl * mean(divergence)
    counts = terms.new_full(terms.shape, float(target[0].numel()))
    return ItemLosses(sums=terms * counts, counts=counts)
