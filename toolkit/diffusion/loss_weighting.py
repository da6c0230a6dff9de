"""Weights of the loss by noise level: (objective, t (B,)) -> (B,) float32.

A weight w on the squared error of the noise is the weight w SNR / (SNR + 1) on the squared error of v,
because |v error|^2 = |noise error|^2 (SNR + 1) / SNR; so one choice trains both objectives alike.
Every form below is finite at SNR = 0, where the usual min(SNR, gamma) / SNR is 0 / 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from toolkit.diffusion.objectives import Objective

Weighting = Callable[[Objective, Tensor], Tensor]


def _check_gamma(gamma: float) -> None:
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma}")


def min_snr(gamma: float) -> Weighting:
    """Min-SNR-gamma (arXiv:2303.09556): caps the weight of nearly clean levels. gamma > 0, 5 in the paper.

    The weighting raises ValueError for flow matching, for which the paper gives no form.
    """
    _check_gamma(gamma)

    def weight(objective: Objective, t: Tensor) -> Tensor:
        snr = objective.snr(t)
        if objective.name == "epsilon":
            return (gamma / snr).clamp(max=1.0)
        if objective.name == "v_prediction":
            return snr.clamp(max=gamma) / (snr + 1)
        raise ValueError(f"min_snr_gamma is not defined for the objective '{objective.name}'")

    return weight


def snr_gamma(gamma: float) -> Weighting:
    """gamma / SNR on the noise error, min-SNR without its cap at 1; gamma / (SNR + 1) on v. gamma > 0.

    The cap keeps pure noise from outweighing the rest; without it the noise form is infinite at SNR = 0,
    so there the weight is that of the v form. Raises ValueError for flow matching.
    """
    _check_gamma(gamma)

    def weight(objective: Objective, t: Tensor) -> Tensor:
        snr = objective.snr(t)
        if objective.name == "epsilon":
            return (gamma / snr).where(snr > 0, gamma / (snr + 1))
        if objective.name == "v_prediction":
            return gamma / (snr + 1)
        raise ValueError(f"snr_gamma is not defined for the objective '{objective.name}'")

    return weight


def debiased(objective: Objective, t: Tensor) -> Tensor:
    """Debiased estimation (arXiv:2310.08442): 1 / sqrt(SNR) on the noise error, sqrt(SNR) / (SNR + 1) on v.

    The noise form is infinite at SNR = 0, where nothing can be learned from the noise; there it is 0, as the
    form of v is. Raises ValueError for flow matching.
    """
    snr = objective.snr(t)
    if objective.name == "epsilon":
        return snr.rsqrt().where(snr > 0, torch.zeros_like(snr))
    if objective.name == "v_prediction":
        return snr.sqrt() / (snr + 1)
    raise ValueError(f"debiased estimation is not defined for the objective '{objective.name}'")


def debiased_as_kohya(objective: Objective, t: Tensor) -> Tensor:
    """kohya's form of `debiased`: SNR capped at 1000, and 1 / (SNR + 1) on v, another choice there."""
    snr = objective.snr(t).clamp(max=1000.0)
    if objective.name == "epsilon":
        return snr.rsqrt().where(snr > 0, torch.zeros_like(snr))
    if objective.name == "v_prediction":
        return 1 / (snr + 1)
    raise ValueError(f"debiased estimation is not defined for the objective '{objective.name}'")


# The bell exp(-2 (t - 1/2)^2) less its value at the ends, as a mean over t in [0, 1].
_BELL_FLOOR = math.exp(-0.5)
_BELL_MEAN = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - _BELL_FLOOR


def bell(objective: Objective, t: Tensor) -> Tensor:
    """A bell over t, top in the middle, 0 at both ends, mean 1 (`linear_timesteps` of ai-toolkit)."""
    return (torch.exp(-2 * (t - 0.5) ** 2) - _BELL_FLOOR) / _BELL_MEAN


def half_bell(objective: Objective, t: Tensor) -> Tensor:
    """`bell` for the noisy half, and its top for the clean half (`linear_timesteps2` of ai-toolkit)."""
    return bell(objective, t.clamp(min=0.5))


def cosmap(objective: Objective, t: Tensor) -> Tensor:
    """2 / (pi (1 - 2 t + 2 t^2)): CosMap of SD3 (arXiv:2403.03206, section 3.1), mean 1 over t in [0, 1]."""
    return 2 / (math.pi * (1 - 2 * t + 2 * t**2))


def product(weightings: list[Weighting]) -> Weighting | None:
    """All of some weightings multiplied, or None if there are none."""
    if not weightings:
        return None

    def weight(objective: Objective, t: Tensor) -> Tensor:
        return math.prod((each(objective, t) for each in weightings), start=torch.ones_like(t))

    return weight
