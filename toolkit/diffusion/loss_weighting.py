"""Weights of the loss by noise level: (objective, t (B,)) -> (B,) float32.

A weight w on the squared error of the noise is the weight w SNR / (SNR + 1) on the squared error of v,
because |v error|^2 = |noise error|^2 (SNR + 1) / SNR; so one choice trains both objectives alike.
Every form below is finite at SNR = 0, where the usual min(SNR, gamma) / SNR is 0 / 0.
"""

from __future__ import annotations

from collections.abc import Callable

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
