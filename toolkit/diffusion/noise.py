"""The noise of one item: what is mixed into its latents and what the network is to find in them.

Legend: C latent channels, h w latent rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class NoiseSettings:
    """How noise departs from a standard normal; every default leaves it one.

    offset: spread of a value added to whole channels (Guttenberg 2023, "Diffusion with offset noise").
    multires_iterations, multires_discount: coarser and coarser noise added on top (pyramid noise).
    random_multiplier, random_shift: spread of a random factor around 1, and of a shift, of whole channels.
    multiplier: of the noise. target_multiplier: of the noise in the target alone.
    perturbation: input perturbation (arXiv:2301.11706), further noise that the target does not hold.
    """

    offset: float = 0.0
    multires_iterations: int = 0
    multires_discount: float = 0.3
    random_multiplier: float = 0.0
    random_shift: float = 0.0
    multiplier: float = 1.0
    target_multiplier: float = 1.0
    perturbation: float = 0.0

    @property
    def splits(self) -> bool:
        """Whether what is mixed in differs from what the target holds."""
        return self.perturbation != 0 or self.target_multiplier != 1


def make_noise(settings: NoiseSettings, shape: Shape, generator: Generator) -> tuple[Tensor, Tensor]:
    """(noise of the target, noise mixed in), each (C, h, w) float32; one tensor twice unless they differ.

    The plain normal is drawn first, so that a setting changes what is added to it and not the draw.
    """
    noise = _normal(shape, generator)
    per_channel = (shape[0], 1, 1)
    if settings.multires_iterations > 0:
        noise = _multires(noise, settings.multires_iterations, settings.multires_discount, generator)
    if settings.offset:
        noise = noise + settings.offset * _normal(per_channel, generator)
    if settings.random_multiplier:
        noise = noise * (1 + settings.random_multiplier * _normal(per_channel, generator))
    if settings.random_shift:
        noise = noise + settings.random_shift * _normal(per_channel, generator)
    if settings.multiplier != 1:
        noise = noise * settings.multiplier
    mixed = noise
    if settings.perturbation:
        mixed = noise + settings.perturbation * _normal(shape, generator)
    target = noise if settings.target_multiplier == 1 else noise * settings.target_multiplier
    return target, mixed


def _normal(shape: Shape, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def _multires(noise: Tensor, iterations: int, discount: float, generator: Generator) -> Tensor:
    """noise + sum over i of discount^i Up(normal at 1 / r^i of the size), r even over [2, 4), to unit spread.

    The spread is this item's own: what a picture gets does not depend on its company in a batch.
    """
    channels, height, width = noise.shape
    for level in range(iterations):
        ratio = float(2 + 2 * torch.rand((), generator=generator, dtype=torch.float64)) ** level
        rows, columns = max(1, int(height / ratio)), max(1, int(width / ratio))
        coarse = _normal((channels, rows, columns), generator)
        enlarged = interpolate(coarse[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        noise = noise + discount**level * enlarged
        if rows == 1 or columns == 1:
            break
    return noise / noise.std()
