"""The error of a prediction, element by element; who calls decides how to average.

The robust ones grow like d^2 where d, the difference, is small against a threshold c and like |d| beyond it.
c may depend on the noise level (scheduled pseudo-Huber, arXiv:2403.16728): large for clean pictures, whose
details should count fully, small for noise, where an outlier should not rule the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.diffusion.objectives import Objective

# (prediction (B, ...), target (B, ...), objective, t (B,)) -> errors (B, ...)
Criterion = Callable[[Tensor, Tensor, Objective, Tensor], Tensor]
Threshold = Callable[[Objective, Tensor], Tensor]  # (objective, t (B,)) -> c (B,)


def mse(prediction: Tensor, target: Tensor, objective: Objective, t: Tensor) -> Tensor:
    """Squared error (B, ...)."""
    return (prediction - target) ** 2


def mae(prediction: Tensor, target: Tensor, objective: Objective, t: Tensor) -> Tensor:
    """Absolute error (B, ...)."""
    return (prediction - target).abs()


def wavelet(detail: float) -> Criterion:
    """Squared error in the bands of a Haar transform, those of detail counted `detail` times.

    Every 2 x 2 block of the difference is split into its coarse part and three details (horizontal, vertical,
    diagonal), orthonormally: with detail 1 the sum is that of mse, to the last digits. A block's error is
    spread evenly over its places; at an odd edge the last row or column is its own neighbour.
    """
    if detail < 0:
        raise ValueError(f"detail must be at least 0, got {detail}")

    def criterion(prediction: Tensor, target: Tensor, objective: Objective, t: Tensor) -> Tensor:
        difference = prediction - target
        rows, columns = difference.shape[-2:]
        flat = difference.flatten(0, -3)[:, None]
        padded = functional.pad(flat, (0, columns % 2, 0, rows % 2), mode="replicate")
        bands = functional.conv2d(padded, _haar(difference), stride=2) ** 2
        energy = bands[:, :1] + detail * bands[:, 1:].sum(1, keepdim=True)
        places = functional.interpolate(energy / 4, scale_factor=2, mode="nearest")
        return places[:, 0, :rows, :columns].reshape(difference.shape)

    return criterion


def _haar(like: Tensor) -> Tensor:
    """The orthonormal Haar filters (4, 1, 2, 2): mean, horizontal, vertical and diagonal difference."""
    filters = [[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]
    return torch.tensor(filters, dtype=like.dtype, device=like.device)[:, None] / 2


def constant_threshold(c: float) -> Threshold:
    """The same c at every noise level."""
    return lambda objective, t: torch.full_like(t, c)


def exponential_threshold(c: float) -> Threshold:
    """exp(ln(c) s) with s from 0 (clean) to 1 (noise): falls from 1 to c (arXiv:2403.16728, section 4)."""

    def threshold(objective: Objective, t: Tensor) -> Tensor:
        first = 1 / objective.num_steps if objective.num_steps is not None else 0.0
        return torch.exp(math.log(c) * (t - first))

    return threshold


def snr_threshold(c: float) -> Threshold:
    """(1 - c) / (1 + sigma / alpha)^2 + c: from 1 (clean) to c (noise) (same, section 4)."""

    def threshold(objective: Objective, t: Tensor) -> Tensor:
        return (1 - c) / (1 + objective.snr(t).rsqrt()) ** 2 + c

    return threshold


THRESHOLDS: dict[str, Callable[[float], Threshold]] = {
    "constant": constant_threshold,
    "exponential": exponential_threshold,
    "snr": snr_threshold,
}


def _robust(threshold: Threshold, scale: Callable[[Tensor], Tensor]) -> Criterion:
    """scale(c) (sqrt(d^2 + c^2) - c)."""

    def criterion(prediction: Tensor, target: Tensor, objective: Objective, t: Tensor) -> Tensor:
        difference = prediction - target
        c = threshold(objective, t).reshape(-1, *[1] * (difference.ndim - 1))
        # sqrt(d^2 + c^2) - c, without the cancellation of that form where d is small.
        return scale(c) * difference**2 / (torch.sqrt(difference**2 + c**2) + c)

    return criterion


def huber(threshold: Threshold) -> Criterion:
    """2 c (sqrt(d^2 + c^2) - c): d^2 for small d, so its scale is that of mse (kohya's `huber`)."""
    return _robust(threshold, lambda c: 2 * c)


def smooth_l1(threshold: Threshold) -> Criterion:
    """2 (sqrt(d^2 + c^2) - c): 2 |d| for large d (kohya's `smooth_l1`)."""
    return _robust(threshold, lambda c: torch.full_like(c, 2.0))


def pseudo_huber(threshold: Threshold) -> Criterion:
    """sqrt(d^2 + c^2) - c: |d| for large d (ai-toolkit's `pseudo_huber`, there with c = 0.01)."""
    return _robust(threshold, torch.ones_like)


# By the name of train.loss_type; those with a threshold with c and its schedule where a config names neither.
PLAIN: dict[str, Criterion] = {"mse": mse, "mae": mae}
ROBUST: dict[str, tuple[Callable[[Threshold], Criterion], float, str]] = {
    "huber": (huber, 0.1, "snr"),
    "smooth_l1": (smooth_l1, 0.1, "snr"),
    "pseudo_huber": (pseudo_huber, 0.01, "constant"),
}


WAVELET_DETAIL = 2.0  # how much the details of `wavelet` count where a config does not say


def make_criterion(
    name: str, *, c: float | None = None, schedule: str | None = None, detail: float | None = None
) -> Criterion:
    """The criterion of a name. c in (0, 1] and its schedule (constant, exponential, snr) are for robust ones,

    detail is for wavelet.
    Raises ValueError for an unknown name or schedule, or a c out of range.
    """
    if name in PLAIN:
        return PLAIN[name]
    if name == "wavelet":
        return wavelet(WAVELET_DETAIL if detail is None else detail)
    if name not in ROBUST:
        raise ValueError(f"unknown criterion {name!r}; known: {', '.join([*PLAIN, *ROBUST, 'wavelet'])}")
    form, usual_c, usual_schedule = ROBUST[name]
    c = usual_c if c is None else c
    schedule = usual_schedule if schedule is None else schedule
    if not 0 < c <= 1:
        raise ValueError(f"c must be in (0, 1], got {c}")
    if schedule not in THRESHOLDS:
        raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(THRESHOLDS)}")
    return form(THRESHOLDS[schedule](c))
