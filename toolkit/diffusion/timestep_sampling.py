"""Which noise levels are trained how often. A density draws u in (0, 1]; the sampler makes it a t."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from toolkit.diffusion.objectives import Objective
from toolkit.registry import Registry

Density = Callable[[Generator], Tensor]
NOMINAL_STEPS = 1000  # what min_step and max_step count where the schedule has no table


def uniform(generator: Generator) -> Tensor:
    """u () float64, even over (0, 1]. Zero is left out: no noise, no signal to learn from, infinite SNR."""
    return 1 - torch.rand((), generator=generator, dtype=torch.float64)


def logit_normal(generator: Generator) -> Tensor:
    """u () float64 = sigmoid of a standard normal: puts weight on the middle levels (SD3, arXiv:2403.03206).

    The sign is the paper's (a positive mean would mean more noise), not that of recipes which look u up
    in a table of descending timesteps.
    """
    return torch.sigmoid(torch.randn((), generator=generator, dtype=torch.float64))


# By the name of train.timestep_type. ai-toolkit's "linear" is an evenly spaced table drawn from evenly.
DENSITIES = Registry(
    "timestep type",
    {
        "uniform": "toolkit.diffusion.timestep_sampling:uniform",
        "linear": "toolkit.diffusion.timestep_sampling:uniform",
        "sigmoid": "toolkit.diffusion.timestep_sampling:logit_normal",
    },
)


def make_sampler(
    name: str, *, objective: Objective, min_step: int = 0, max_step: int = NOMINAL_STEPS - 1
) -> Callable[[Generator], Tensor]:
    """A function generator -> t () float32 in (0, 1], on the grid of a table schedule.

    min_step and max_step count denoising steps as sampling takes them: 0 is pure noise, T - 1 almost clean
    (T entries of the table, else 1000); both are included and the density is squeezed between them.
    Raises ConfigError for an unknown name, ValueError for an empty range.
    """
    density: Density = DENSITIES.resolve(name)
    num_steps = objective.num_steps or NOMINAL_STEPS
    last = min(max_step, num_steps - 1)
    if not 0 <= min_step <= last:
        raise ValueError(f"no step between min_step {min_step} and max_step {max_step} of {num_steps}")
    lowest, count = num_steps - 1 - last, last - min_step + 1

    def sample(generator: Generator) -> Tensor:
        position = density(generator) * count
        if objective.num_steps is not None:
            # Rounding up splits (0, count] into equal parts, so both ends are as likely as the rest.
            position = torch.ceil(position).clamp(1, count)
        return ((lowest + position) / num_steps).float()

    return sample
