"""What a slider learns: a network that moves a concept one way at +1 and the other way at -1.

Concept Sliders (arXiv:2311.12092), which extend ESD's erasure (arXiv:2303.07345). With the frozen base's
predictions eps of one noisy picture for the class c, a positive prompt p and a negative prompt n,

    the network at +m learns  eps(c) + strength * (eps(p) - eps(n))
    the network at -m learns  eps(c) - strength * (eps(p) - eps(n))

and, for every anchor a, eps(a) as it is at both. Predictions are in the terms of the model's objective:
noise, velocity and flow are all affine in the denoised latents, so the difference moves the same way.

Legend: B batch, C latent channels, h w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.diffusion.diffusion_loss import Denoiser, ItemLosses, sum_valid
from toolkit.networks.base import Network
from toolkit.prompt_utils import Conditioning

Encoder = Callable[[Sequence[str]], Conditioning]


@dataclass(frozen=True, slots=True)
class SlidePrompts:
    """The texts of B items: the class that is moved and its two ends. anchors: texts that all items hold."""

    target: Sequence[str]
    positive: Sequence[str]
    negative: Sequence[str]
    anchors: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideRule:
    """How far and at which strengths of the network.

    strength: how many differences of positive and negative the class is moved. multiplier: the network's
    strength at which that is learned, with each of the signs. anchor_weight: of the anchors' term beside a
    sign's. normalised: targets keep the mean and spread of the class's own prediction.
    """

    strength: float
    anchor_weight: float = 1.0
    anchor_multipliers: Sequence[float] = ()
    multiplier: float = 1.0
    signs: Sequence[float] = (1.0, -1.0)
    normalised: bool = False


def match_statistics(values: Tensor, reference: Tensor) -> Tensor:
    """values (B, ...) with the mean and the standard deviation that each item of reference (B, ...) has."""
    dims = tuple(range(1, values.ndim))
    std, wanted = values.std(dims, keepdim=True), reference.std(dims, keepdim=True)
    centred = values - values.mean(dims, keepdim=True)
    tiny = torch.finfo(std.dtype).tiny
    return centred * (wanted / std.clamp(min=tiny)) + reference.mean(dims, keepdim=True)


def slide_target(base: Tensor, direction: Tensor, strength: float, *, normalised: bool) -> Tensor:
    """base and direction (B, C, h, w) -> base + strength * direction; normalised: with base's statistics."""
    moved = base + strength * direction
    return match_statistics(moved, base) if normalised else moved


@contextmanager
def at_strength(network: Network, multiplier: float) -> Iterator[None]:
    """The network at another strength; the one before comes back."""
    before = network.multiplier
    network.multiplier = multiplier
    try:
        yield
    finally:
        network.multiplier = before


def slider_losses(
    model: Denoiser,
    network: Network,
    noisy: Tensor,
    t: Tensor,
    *,
    prompts: SlidePrompts,
    encode: Encoder,
    rule: SlideRule,
    mask: Tensor | None = None,
    normalized: bool = True,
) -> Generator[ItemLosses, None, None]:
    """The loss of noisy (B, C, h, w) at t (B,), in parts that add up: for each sign, and each anchor at it.

    Per item it is the mean over the terms: one for each sign, and with anchors one more, theirs averaged
    and weighted. The network has a part's strength until the next part is asked for, so that a backward
    pass which recomputes activations finds it. encode is called anew for every part: an encoder may be in
    training. mask (B, 1, h, w), normalized: see toolkit.diffusion.diffusion_loss.sum_valid.
    """
    anchors = list(zip(prompts.anchors, rule.anchor_multipliers, strict=True))

    def predict(texts: Sequence[str]) -> Tensor:
        return model.predict(noisy, t, encode(texts)).float()

    with torch.no_grad(), network.enabled(False):
        base = predict(prompts.target)
        direction = predict(prompts.positive) - predict(prompts.negative)
        held = [predict([text] * len(noisy)) for text, _ in anchors]
    num_terms = len(rule.signs) + bool(anchors)
    for sign in rule.signs:
        target = slide_target(base, direction, sign * rule.strength, normalised=rule.normalised)
        with at_strength(network, sign * rule.multiplier):
            errors = predict(prompts.target) - target
            yield sum_valid(errors**2 / num_terms, mask, normalized=normalized)
        for (text, multiplier), kept in zip(anchors, held, strict=True):
            weight = rule.anchor_weight / (num_terms * len(rule.signs) * len(anchors))
            with at_strength(network, sign * multiplier):
                errors = predict([text] * len(noisy)) - kept
                yield sum_valid(weight * errors**2, mask, normalized=normalized)
