"""Which noise levels are trained how often.

A density is its quantile function: it maps u, even over (0, 1], to a noise level. So one draw of u serves
every density, and a bias on u (`content`, `style`) means the same on each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Generator, Tensor

from toolkit.diffusion.objectives import Objective
from toolkit.registry import Registry

# (u () float64 in (0, 1], e^mu of the resolution shift) -> position () float64 in (0, 1], 1 noise
Quantile = Callable[[Tensor, float], Tensor]
NOMINAL_STEPS = 1000  # what min_step and max_step count where the schedule has no table

# FLUX.1 and Lumina 2 shift by mu, linear in the number of 2 x 2 latent patches through these two points.
_BASE_TOKENS, _BASE_MU = 256, 0.5
_MAX_TOKENS, _MAX_MU = 4096, 1.15


def uniform(u: Tensor, shift: float) -> Tensor:
    """Even. Zero is left out: no noise, no signal to learn from, infinite SNR."""
    return u


def logit_normal(u: Tensor, shift: float) -> Tensor:
    """Sigmoid of a standard normal: puts weight on the middle levels (SD3, arXiv:2403.03206).

    The sign is the paper's (a positive mean would mean more noise), not that of recipes which look u up
    in a table of descending timesteps.
    """
    return torch.sigmoid(torch.special.ndtri(u.clamp(max=1 - 1e-12)))


def shifted(u: Tensor, shift: float) -> Tensor:
    """a u / (1 + (a - 1) u): even before the shift towards noise (SD3, arXiv:2403.03206, eq. 23)."""
    return shift * u / (1 + (shift - 1) * u)


@lru_cache(maxsize=1)
def _blend_table() -> Tensor:
    """1000 levels, ascending: three quarters log-normal (0, 1/3) counted from noise, a quarter even."""
    places = (torch.arange(750, dtype=torch.float64) + 0.5) / 750
    drawn = torch.exp(0.333 * torch.special.ndtri(places))
    even = torch.linspace(1, 1000, 250, dtype=torch.float64) / 1000
    return torch.cat([1 - drawn / drawn.max(), even]).clamp(min=1e-3).sort().values


def lognorm_blend(u: Tensor, shift: float) -> Tensor:
    """A table blended of a log-normal and an even part, looked up at u (ai-toolkit's `lognorm_blend`)."""
    table = _blend_table()
    return table[torch.ceil(u * len(table)).long().clamp(1, len(table)) - 1]


def pure_noise(u: Tensor, shift: float) -> Tensor:
    """Always 1: what a one-step generator is trained at."""
    return torch.ones_like(u)


# By the name of train.timestep_type. ai-toolkit's "linear" is an evenly spaced table drawn from evenly, and
# its "weighted" the same with weights on the loss (toolkit.diffusion.loss_weighting.cosmap here).
DENSITIES = Registry(
    "timestep type",
    {
        "uniform": "toolkit.diffusion.timestep_sampling:uniform",
        "linear": "toolkit.diffusion.timestep_sampling:uniform",
        "weighted": "toolkit.diffusion.timestep_sampling:uniform",
        "sigmoid": "toolkit.diffusion.timestep_sampling:logit_normal",
        "shift": "toolkit.diffusion.timestep_sampling:shifted",
        "flux_shift": "toolkit.diffusion.timestep_sampling:shifted",
        "lumina2_shift": "toolkit.diffusion.timestep_sampling:shifted",
        "lognorm_blend": "toolkit.diffusion.timestep_sampling:lognorm_blend",
        "one_step": "toolkit.diffusion.timestep_sampling:pure_noise",
    },
)


def resolution_shift(num_tokens: int) -> float:
    """e^mu of a picture of so many 2 x 2 latent patches: mu = 0.5 at 256 and 1.15 at 4096 (FLUX.1)."""
    slope = (_MAX_MU - _BASE_MU) / (_MAX_TOKENS - _BASE_TOKENS)
    return math.exp(_BASE_MU + slope * (num_tokens - _BASE_TOKENS))


def _balanced(r: Tensor) -> Tensor:
    return r


def _content(r: Tensor) -> Tensor:
    # 1 - r^3 with r even over [0, 1); written for r even over (0, 1], which r is here.
    return (1 - (1 - r) ** 3).clamp(min=torch.finfo(r.dtype).tiny)


def _style(r: Tensor) -> Tensor:
    return r**3


# By the name of train.content_or_style: content is decided at high noise, style at low (ai-toolkit).
BIASES: dict[str, Callable[[Tensor], Tensor]] = {
    "balanced": _balanced,
    "content": _content,
    "style": _style,
}

SampleT = Callable[[Generator, int], Tensor]


def make_sampler(
    name: str,
    *,
    objective: Objective,
    min_step: int = 0,
    max_step: int = NOMINAL_STEPS - 1,
    bias: str = "balanced",
    shift: float | None = None,
) -> SampleT:
    """A function (generator, number of 2 x 2 latent patches) -> t () float32 in (0, 1], on a table's grid.

    min_step and max_step count denoising steps as sampling takes them: 0 is pure noise, T - 1 almost clean
    (T entries of the table, else 1000); both are included and the density is squeezed between them.
    bias: balanced, content (more noise) or style (less). shift: of the density `shift`, None for the one that
    follows from the number of patches. Raises ConfigError for an unknown name, ValueError for an empty range.
    """
    quantile: Quantile = DENSITIES.resolve(name)
    skew = BIASES[bias]
    static = shift if name == "shift" else None
    num_steps = objective.num_steps or NOMINAL_STEPS
    last = min(max_step, num_steps - 1)
    if not 0 <= min_step <= last:
        raise ValueError(f"no step between min_step {min_step} and max_step {max_step} of {num_steps}")
    lowest, count = num_steps - 1 - last, last - min_step + 1

    def sample(generator: Generator, num_tokens: int = _BASE_TOKENS) -> Tensor:
        u = skew(1 - torch.rand((), generator=generator, dtype=torch.float64))
        position = quantile(u, resolution_shift(num_tokens) if static is None else static) * count
        if objective.num_steps is not None:
            # Rounding up splits (0, count] into equal parts, so both ends are as likely as the rest.
            position = torch.ceil(position).clamp(1, count)
        return ((lowest + position) / num_steps).float()

    return sample
