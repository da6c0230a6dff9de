"""Which noise an image is measured with: the same for every caption, model, batch size and order.

A draw is a noise level t and a noise, both functions of (seed, the image's content, the draw's number), so
that two conditions measured on the same draws differ by nothing but the condition (common random numbers),
and a later run with more draws repeats the earlier ones.

Each draw has a noise level of its own. The levels of an image follow van der Corput's sequence, rotated by a
number of the image's own (Cranley and Patterson 1976): any first 2^k of them lie in 2^k different parts of
equal probability. Draws come in blocks of four: two noises, then their negatives (antithetic) a quarter of
the schedule away. At one and the same level a noise and its negative nearly always agree on which of two
captions fits better, so that the second would say what the first did.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.diffusion.objectives import Objective
from toolkit.diffusion.timestep_sampling import DENSITIES, resolution_shift
from toolkit.evaluation.draws_layout import noise_of, sign_of, van_der_corput
from toolkit.seeding import keyed_generator, keyed_random


def _early(u: Tensor, shift: float) -> Tensor:
    return 1 - (1 - u) ** 3


def _late(u: Tensor, shift: float) -> Tensor:
    return u**3


# Densities of the noise level that only an evaluation offers: early means early in sampling, at high noise.
_OWN: dict[str, Callable[[Tensor, float], Tensor]] = {"cubic_early": _early, "cubic_late": _late}
TIMESTEP_TYPES = (*_OWN, *DENSITIES)


@dataclass(frozen=True, slots=True)
class Design:
    """How noise levels and noises are drawn for images.

    timestep_type: density of the levels (uniform by default: each part of the schedule counts alike).
    t_range: the part of the schedule that is measured, in (0, 1]. fixed_noise_std: the one noise level, told
    as the standard deviation of the noise in the mixture, instead of a density. Raises ValueError.
    """

    seed: int = 0
    timestep_type: str = "uniform"
    t_range: tuple[float, float] = (0.0, 1.0)
    fixed_noise_std: float | None = None

    def __post_init__(self) -> None:
        low, high = self.t_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"t_range {low} to {high} must rise inside [0, 1]")
        if self.fixed_noise_std is not None and not 0 < self.fixed_noise_std <= 1:
            raise ValueError(f"fixed_noise_std {self.fixed_noise_std} must be in (0, 1]")
        if self.timestep_type not in TIMESTEP_TYPES:
            raise ValueError(f"unknown timestep type {self.timestep_type!r}")

    def t(self, content: str, draw: int, objective: Objective, num_tokens: int = 256) -> Tensor:
        """The noise level () float32 in (0, 1] of a draw, on a table's grid.

        content: what stands for the image. num_tokens: its 2 x 2 latent patches, for densities that shift.
        """
        if self.fixed_noise_std is not None:
            return level_with_std(objective, self.fixed_noise_std)
        rotation = keyed_random("eval-t", self.seed, content).random()
        even = (van_der_corput(draw) + rotation) % 1.0
        # (0, 1] like every density here takes it: 0 would be a picture without noise.
        u = torch.tensor(1.0 - even, dtype=torch.float64)
        quantile = _OWN.get(self.timestep_type) or DENSITIES.resolve(self.timestep_type)
        low, high = self.t_range
        t = low + (high - low) * quantile(u, resolution_shift(num_tokens))
        return objective.snap(t.float().reshape(1))[0]

    def noise(self, content: str, draw: int, shape: tuple[int, ...]) -> Tensor:
        """The noise of a draw, `shape` float32 on the CPU."""
        generator = keyed_generator("eval-noise", self.seed, content, noise_of(draw))
        return torch.randn(shape, generator=generator, dtype=torch.float32) * sign_of(draw)


def noise_std(objective: Objective, t: Tensor) -> Tensor:
    """t (B,) -> standard deviation of the noise in the mixture (B,), for data of unit variance.

    Flow matching mixes (1 - t) x + t n: t itself. A variance-preserving table: sqrt(1 - alphas_cumprod).
    """
    if objective.num_steps is None:
        return t.float()
    return (1 / (1 + objective.snr(t))) ** 0.5


def level_with_std(objective: Objective, std: float) -> Tensor:
    """The noise level () whose noise has this standard deviation under the model's own schedule.

    The nearest level of a table. Raises ValueError if std is not in (0, 1].
    """
    if not (math.isfinite(std) and 0 < std <= 1):
        raise ValueError(f"a standard deviation of the noise of {std} must be in (0, 1]")
    if objective.num_steps is None:
        return torch.tensor(std, dtype=torch.float32)
    levels = torch.arange(1, objective.num_steps + 1, dtype=torch.float32) / objective.num_steps
    return levels[(noise_std(objective, levels) - std).abs().argmin()]
