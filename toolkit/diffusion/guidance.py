"""What stands between a prediction and its target: guidance while training, and corrections of statistics.

Legend: B batch, C latent channels, h w latent rows and columns. A prediction is in the terms of the model's
objective (noise, velocity or flow); all are affine in the clean latents, so guidance is the same in each.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-8


def _of_items(values: Tensor, reference: Tensor) -> Tensor:
    """values (B,) -> (B, 1, ...) to multiply reference (B, ...)."""
    return values.to(reference.device, reference.dtype).reshape(-1, *[1] * (reference.ndim - 1))


def guided(prediction: Tensor, negative: Tensor, scale: Tensor, *, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance (arXiv:2207.12598): negative + scale (prediction - negative).

    prediction and negative (B, C, h, w), scale (B,). rescale in [0, 1]: how far the spread of each item is
    brought back to that of its prediction (arXiv:2305.08891, eq. 15 and 16).
    """
    result = negative + _of_items(scale, prediction) * (prediction - negative)
    if rescale == 0:
        return result
    dims = tuple(range(1, result.ndim))
    ratio = prediction.std(dims, keepdim=True) / result.std(dims, keepdim=True)
    return rescale * ratio * result + (1 - rescale) * result


def guidance_target(
    target: Tensor, unconditional: Tensor, scale: Tensor, *, zero_star: bool = False
) -> Tensor:
    """The target pushed away from what the model says without a prompt: u + scale (target - u).

    target and unconditional (B, C, h, w), scale (B,). A model that learns it draws at scale 1 what it drew
    with guidance before. zero_star: u is first scaled to come as near to the target as it can, by
    <target, u> / |u|^2 of each item (CFG-Zero*, arXiv:2503.18886).
    """
    if zero_star:
        dims = tuple(range(1, target.ndim))
        share = (target * unconditional).sum(dims) / (unconditional.square().sum(dims) + _EPSILON)
        unconditional = _of_items(share, target) * unconditional
    return unconditional + _of_items(scale, target) * (target - unconditional)


def match_norm(prediction: Tensor, target: Tensor) -> Tensor:
    """prediction (B, ...) scaled to the norm that each item of target (B, ...) has."""
    dims = tuple(range(1, prediction.ndim))
    norm: Tensor = torch.linalg.vector_norm(prediction, dim=dims, keepdim=True)
    wanted: Tensor = torch.linalg.vector_norm(target, dim=dims, keepdim=True)
    return prediction * (wanted / (norm + _EPSILON))


def match_channels(prediction: Tensor, base: Tensor, share: float) -> Tensor:
    """prediction (B, C, h, w) with mean and spread of each channel brought a share of the way to base's.

    The statistics are constants of the step: no gradient passes through them.
    """
    dims = (-2, -1)
    fixed = prediction.detach()
    mean, std = fixed.mean(dims, keepdim=True), fixed.std(dims, keepdim=True)
    wanted_mean = torch.lerp(mean, base.mean(dims, keepdim=True), share)
    wanted_std = torch.lerp(std, base.std(dims, keepdim=True), share)
    return (prediction - mean) * (wanted_std / (std + _EPSILON)) + wanted_mean
