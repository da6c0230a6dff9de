"""The loss of a batch, item by item: the one function that training and evaluation share.

Legend: B batch, C latent channels, h w latent rows and columns.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from toolkit.diffusion.criteria import Criterion
from toolkit.diffusion.loss_weighting import Weighting
from toolkit.diffusion.objectives import Objective


@dataclass(frozen=True, slots=True)
class ItemLosses:
    """sums (B,): weighted errors added up over an item's valid elements; counts (B,): how many those are."""

    sums: Tensor
    counts: Tensor

    @property
    def per_item(self) -> Tensor:
        """Mean weighted error of every item (B,) float32; 0 for an item without valid elements."""
        return self.sums / self.counts.clamp(min=torch.finfo(self.counts.dtype).tiny)


class Denoiser(Protocol):
    """What the loss asks of a model; toolkit.models.base.Architecture has it."""

    objective: Objective

    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w)."""

    def encode_prompts(self, prompts: list[str], images: list[Tensor] | None = None) -> Any:
        """B prompts -> their conditioning."""

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Any) -> Tensor:
        """noisy (B, C, h, w), t (B,) -> prediction (B, C, h, w)."""


class NoisedBatch(Protocol):
    """What the loss reads of a batch; toolkit.data.items.Batch has it."""

    @property
    def captions(self) -> tuple[str, ...]:
        """B texts."""

    @property
    def pixels(self) -> Tensor | None:
        """(B, 3, H, W) in [-1, 1]."""

    @property
    def latents(self) -> Tensor | None:
        """(B, C, h, w)."""

    @property
    def noise(self) -> Tensor | None:
        """Like the latents."""

    @property
    def t(self) -> Tensor | None:
        """(B,) in [0, 1]."""

    @property
    def conditioning(self) -> Any:
        """What predict takes, or None."""

    @property
    def mask(self) -> Tensor | None:
        """(B, 1, h, w), how much each place counts, or None."""


def latents_of(model: Denoiser, batch: NoisedBatch) -> Tensor:
    """The batch's latents, or its pixels encoded, without a gradient: the autoencoder does not learn here.

    An enclosing autocast is for the network; the latents must be those that a cache would hold.
    """
    if batch.latents is not None:
        return batch.latents
    if batch.pixels is None:
        raise ValueError("a batch needs latents or pixels")
    with torch.no_grad(), ExitStack() as stack:
        # The pixels may still be on the CPU while the model is elsewhere, so not their device alone.
        for device in {"cpu", batch.pixels.device.type, *_accelerators()}:
            stack.enter_context(torch.autocast(device, enabled=False))
        return model.encode_images(batch.pixels)


def _accelerators() -> list[str]:
    """The kind of accelerator of this machine, if it has one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [] if accelerator is None else [accelerator.type]


def _beside(values: Tensor, reference: Tensor) -> Tensor:
    """values as float32 on the device of reference, without making the host wait for an accelerator."""
    return values.to(reference.device, torch.float32, non_blocking=reference.device.type != "cpu")


def diffusion_loss(
    model: Denoiser,
    batch: NoisedBatch,
    *,
    criterion: Criterion,
    weighting: Weighting | None = None,
    conditioning: Any = None,
    latents: Tensor | None = None,
) -> ItemLosses:
    """The error of the model's prediction for every item, weighted by noise level and mask, not reduced.

    conditioning and latents stand in for the batch's; without either the captions and pixels are encoded.
    batch.weights are left to the caller: they weigh items against each other, not elements.
    Raises ValueError if the batch has no noise or t.
    """
    if batch.noise is None or batch.t is None:
        raise ValueError("a batch needs noise and t")
    latents = (latents_of(model, batch) if latents is None else latents).float()
    noise = _beside(batch.noise, latents)
    t = _beside(batch.t, latents)
    if conditioning is None:
        conditioning = batch.conditioning
    if conditioning is None:
        conditioning = model.encode_prompts(list(batch.captions))
    # An enclosing autocast is for the network; noising and the error stay float32.
    with torch.autocast(latents.device.type, enabled=False):
        noisy = model.objective.add_noise(latents, noise, t)
        target = model.objective.target(latents, noise, t)
    prediction = model.predict(noisy, t, conditioning)
    with torch.autocast(latents.device.type, enabled=False):
        errors = criterion(prediction.float(), _beside(target, prediction))
        if weighting is not None:
            weights = weighting(model.objective, _beside(t, prediction))
            errors = errors * weights.reshape(-1, *[1] * (errors.ndim - 1))
        return _sum_valid(errors, batch.mask)


def _sum_valid(errors: Tensor, mask: Tensor | None) -> ItemLosses:
    """errors (B, ...) and how much each element counts -> sums and counts (B,)."""
    if mask is None:
        sums = errors.flatten(1).sum(1)
        return ItemLosses(sums, torch.full_like(sums, errors[0].numel()))
    valid = _beside(mask, errors).expand_as(errors)
    # Where nothing counts, an infinite error must not turn into 0 * inf.
    counted = torch.where(valid > 0, errors * valid, torch.zeros_like(errors))
    return ItemLosses(counted.flatten(1).sum(1), valid.flatten(1).sum(1))
