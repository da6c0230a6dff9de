"""Noise denoised part of the way, for losses that need noisy latents and have no pictures (LECO's training).

Legend: B batch, C latent channels, h w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from toolkit.diffusion.objectives import Objective

# noisy (b, C, h, w), t (b,), which of the B items these are (b,) int64 -> prediction (b, C, h, w).
Predictor = Callable[[Tensor, Tensor, Tensor], Tensor]


def noise_levels(objective: Objective, num_steps: int) -> Tensor:
    """The levels (num_steps,) from which an even path takes its steps: 1 first, then down towards 0."""
    return objective.snap(1 - torch.arange(num_steps) / num_steps)


def implied_noise(objective: Objective, noisy: Tensor, clean: Tensor, t: Tensor) -> Tensor:
    """The noise (B, ...) that makes noisy out of clean at t (B,): add_noise is affine, so it inverts."""
    zero, one = torch.zeros_like(noisy), torch.ones_like(noisy)
    return (noisy - objective.add_noise(clean, zero, t)) / objective.add_noise(zero, one, t)


def denoise_step(objective: Objective, noisy: Tensor, prediction: Tensor, t: Tensor, to: Tensor) -> Tensor:
    """noisy at t (B,) -> the latents at the lower level `to` (B,), without new noise.

    DDIM with eta 0 (arXiv:2010.02502); for flow matching that is Euler's step.
    """
    clean = objective.denoised(noisy, prediction, t)
    return objective.add_noise(clean, implied_noise(objective, noisy, clean, t), to)


@torch.no_grad()
def denoise_partly(
    objective: Objective, predict: Predictor, noise: Tensor, num_done: Tensor, *, num_steps: int
) -> tuple[Tensor, Tensor]:
    """noise (B, C, h, w) -> the latents after num_done (B,) of num_steps steps, and their levels t (B,).

    num_done is on the CPU, each in [0, num_steps). An item that has arrived is not computed any further.
    """
    levels = noise_levels(objective, num_steps)
    latents = noise.float().clone()
    for index in range(int(num_done.max()) if len(num_done) else 0):
        going = torch.nonzero(num_done > index).flatten()
        rows = going.to(noise.device)
        t = levels[index].expand(len(going)).to(noise.device)
        to = levels[index + 1].expand(len(going)).to(noise.device)
        here = latents[rows]
        prediction = predict(here, t, going).float()
        latents[rows] = denoise_step(objective, here, prediction, t, to)
    return latents, levels[num_done].to(noise.device)
