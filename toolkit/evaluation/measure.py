"""Losses of images under several conditions, on the same noisy latents.

The loss is the trainer's own (toolkit.diffusion.diffusion_loss). Latents are encoded once, noised once for
each draw, and the noisy latents go through the model with every condition stacked along the batch.

Legend: B images, A conditions of each, D draws, C latent channels, h w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.data.items import Batch, MediaItem
from toolkit.diffusion.criteria import Criterion, mse
from toolkit.diffusion.diffusion_loss import errors_of, noise_latents
from toolkit.evaluation.draws import Design
from toolkit.evaluation.outcomes import content_of
from toolkit.models.base import Architecture
from toolkit.prompt_utils import Conditioning, concat


@dataclass(frozen=True)
class Subject:
    """An image to measure: its item, latents (C, h, w) float32, and the conditioning of its A conditions."""

    item: MediaItem
    latents: Tensor
    conditions: Sequence[Conditioning]


@dataclass(frozen=True)
class Measured:
    """losses (B, A, D) float32 and noise levels t (B, D), both on the CPU."""

    losses: Tensor
    t: Tensor


@torch.inference_mode()
def measure(
    model: Architecture,
    subjects: Sequence[Subject],
    draws: Sequence[int],
    design: Design,
    *,
    criterion: Criterion = mse,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Measured:
    """The loss of every image under each of its conditions at each of the draws.

    All subjects have one bucket and the same number of conditions; one forward pass a draw, of B x A rows.
    Raises ValueError otherwise.
    """
    counts = {len(subject.conditions) for subject in subjects}
    shapes = {tuple(subject.latents.shape) for subject in subjects}
    if len(counts) != 1 or len(shapes) != 1:
        raise ValueError(f"subjects differ in conditions {sorted(counts)} or latents {sorted(shapes)}")
    (num_conditions,), num_subjects = counts, len(subjects)
    device = model.device
    latents = torch.stack([subject.latents for subject in subjects]).to(device, torch.float32)
    # Row b * A + a: image b under condition a.
    conditioning = concat([each for subject in subjects for each in subject.conditions]).to(device)
    items = tuple(subject.item for subject in subjects for _ in range(num_conditions))
    told = model.condition_items(conditioning, Batch(items, ("",) * len(items), torch.ones(len(items))))
    losses, levels = [], []
    for draw in draws:
        batch = _drawn(model, subjects, draw, design)
        noised = noise_latents(model, batch, latents=latents)
        rows = _Rows(num_conditions)
        t = rows.of(noised.t)
        with autocast():
            prediction = model.predict(rows.of(noised.noisy), t, told)
        errors = errors_of(model, prediction, rows.of(noised.target), t, criterion=criterion)
        losses.append(errors.per_item.reshape(num_subjects, num_conditions))
        levels.append(noised.t)
    return Measured(torch.stack(losses, dim=-1).cpu(), torch.stack(levels, dim=-1).cpu())


def _drawn(model: Architecture, subjects: Sequence[Subject], draw: int, design: Design) -> Batch:
    """The batch of a draw, one row an image, on the CPU."""
    noise, t = [], []
    for subject in subjects:
        content = content_of(subject.item)
        rows, columns = subject.latents.shape[-2:]
        noise.append(design.noise(content, draw, tuple(subject.latents.shape)))
        t.append(design.t(content, draw, model.objective, (rows // 2) * (columns // 2)))
    items = tuple(subject.item for subject in subjects)
    return Batch(
        items=items,
        captions=tuple(item.caption for item in items),
        weights=torch.ones(len(items)),
        noise=torch.stack(noise),
        t=torch.stack(t),
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """From one row an image to one row an image and condition."""

    num_conditions: int

    def of(self, values: Tensor) -> Tensor:
        """values (B, ...) -> (B A, ...), each image's row A times in a row."""
        return values.repeat_interleave(self.num_conditions, dim=0)
