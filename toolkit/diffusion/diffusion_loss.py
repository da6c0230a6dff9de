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

    def plus(self, other: ItemLosses, factor: float) -> ItemLosses:
        """Losses whose per_item is this one's plus factor times the other's, over this one's counts."""
        return ItemLosses(self.sums + factor * other.per_item * self.counts, self.counts)


@dataclass(frozen=True, slots=True)
class Multipliers:
    """Factors of pixels before they are encoded, of latents before and after noise is mixed in."""

    pixels: float = 1.0
    latents: float = 1.0
    noisy: float = 1.0


@dataclass(frozen=True, slots=True)
class Noised:
    """What the network sees and should answer: noisy and target (B, C, h, w), t (B,), all float32."""

    noisy: Tensor
    target: Tensor
    t: Tensor


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
    def mixed_noise(self) -> Tensor | None:
        """Like the noise: what is mixed in where that is not the noise of the target, or None."""

    @property
    def t(self) -> Tensor | None:
        """(B,) in [0, 1]."""

    @property
    def conditioning(self) -> Any:
        """What predict takes, or None."""

    @property
    def mask(self) -> Tensor | None:
        """(B, 1, h, w), how much each place counts, or None."""


def latents_of(model: Denoiser, batch: NoisedBatch, factor: float = 1.0) -> Tensor:
    """The batch's latents, or its pixels encoded, without a gradient: the autoencoder does not learn here.

    An enclosing autocast is for the network; the latents must be those that a cache would hold. factor: of
    the pixels before they are encoded.
    """
    if batch.latents is not None:
        return batch.latents
    if batch.pixels is None:
        raise ValueError("a batch needs latents or pixels")
    with torch.no_grad(), ExitStack() as stack:
        # The pixels may still be on the CPU while the model is elsewhere, so not their device alone.
        for device in {"cpu", batch.pixels.device.type, *_accelerators()}:
            stack.enter_context(torch.autocast(device, enabled=False))
        return model.encode_images(batch.pixels if factor == 1 else batch.pixels * factor)


def _accelerators() -> list[str]:
    """The kind of accelerator of this machine, if it has one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [] if accelerator is None else [accelerator.type]


def _beside(values: Tensor, reference: Tensor) -> Tensor:
    """values as float32 on the device of reference, without making the host wait for an accelerator."""
    return values.to(reference.device, torch.float32, non_blocking=reference.device.type != "cpu")


def noise_latents(
    model: Denoiser,
    batch: NoisedBatch,
    *,
    latents: Tensor | None = None,
    multipliers: Multipliers = Multipliers(),
) -> Noised:
    """Mix the batch's noise into its latents. `latents` stand in for the batch's, on the right device.

    Raises ValueError if the batch has no noise or t, or neither latents nor pixels.
    """
    if batch.noise is None or batch.t is None:
        raise ValueError("a batch needs noise and t")
    latents = (latents_of(model, batch, multipliers.pixels) if latents is None else latents).float()
    noise = _beside(batch.noise, latents)
    mixed = noise if batch.mixed_noise is None else _beside(batch.mixed_noise, latents)
    t = _beside(batch.t, latents)
    # An enclosing autocast is for the network; noising stays float32.
    with torch.autocast(latents.device.type, enabled=False):
        if multipliers.latents != 1:
            latents = latents * multipliers.latents
        noisy = model.objective.add_noise(latents, mixed, t)
        if multipliers.noisy != 1:
            noisy = noisy * multipliers.noisy
        return Noised(noisy, model.objective.target(latents, noise, t), t)


def errors_of(
    model: Denoiser,
    prediction: Tensor,
    target: Tensor,
    t: Tensor,
    *,
    criterion: Criterion,
    weighting: Weighting | None = None,
    mask: Tensor | None = None,
    normalized: bool = True,
) -> ItemLosses:
    """prediction and target (B, C, h, w), t (B,), mask (B, 1, h, w) or None -> what every item is off by.

    Weighted by noise level and mask; not reduced over the batch. normalized: see sum_valid.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        t = _beside(t, prediction)
        errors = criterion(prediction.float(), _beside(target, prediction), model.objective, t)
        if weighting is not None:
            weights = weighting(model.objective, t)
            errors = errors * weights.reshape(-1, *[1] * (errors.ndim - 1))
        return sum_valid(errors, mask, normalized=normalized)


def diffusion_loss(
    model: Denoiser,
    batch: NoisedBatch,
    *,
    criterion: Criterion,
    weighting: Weighting | None = None,
    conditioning: Any = None,
    latents: Tensor | None = None,
    multipliers: Multipliers = Multipliers(),
    normalized: bool = True,
) -> ItemLosses:
    """The error of the model's prediction for every item, weighted by noise level and mask, not reduced.

    conditioning and latents stand in for the batch's; without either the captions and pixels are encoded.
    batch.weights are left to the caller: they weigh items against each other, not elements.
    Raises ValueError if the batch has no noise or t.
    """
    noised = noise_latents(model, batch, latents=latents, multipliers=multipliers)
    if conditioning is None:
        conditioning = batch.conditioning
    if conditioning is None:
        conditioning = model.encode_prompts(list(batch.captions))
    prediction = model.predict(noised.noisy, noised.t, conditioning)
    return errors_of(
        model,
        prediction,
        noised.target,
        noised.t,
        criterion=criterion,
        weighting=weighting,
        mask=batch.mask,
        normalized=normalized,
    )


def sum_valid(errors: Tensor, mask: Tensor | None, *, normalized: bool = True) -> ItemLosses:
    """errors (B, C, h, w), mask (B, 1, h, w) in [0, 1], how much places count, or None -> losses of items.

    normalized: counts are what the mask lets count, so per_item is a weighted mean; else they are all
    elements, and a small mask makes a small loss.
    """
    if mask is None:
        sums = errors.flatten(1).sum(1)
        return ItemLosses(sums, torch.full_like(sums, errors[0].numel()))
    valid = _beside(mask, errors).expand_as(errors)
    # Where nothing counts, an infinite error must not turn into 0 * inf.
    counted = torch.where(valid > 0, errors * valid, torch.zeros_like(errors))
    sums = counted.flatten(1).sum(1)
    counts = valid.flatten(1).sum(1) if normalized else torch.full_like(sums, errors[0].numel())
    return ItemLosses(sums, counts)
