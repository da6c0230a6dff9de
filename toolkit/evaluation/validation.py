"""The loss of fixed pictures on a fixed grid of noise levels and noises, without weights.

Every picture is measured at the same draws at every step and in every run: what differs between two
measurements is the model alone. The draws are toolkit.evaluation.draws', the loss is the trainer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby

import numpy
import torch

from toolkit.evaluation.draws import Design
from toolkit.evaluation.measure import Subject, measure
from toolkit.evaluation.statistics import Floats
from toolkit.models.base import Architecture
from toolkit.seeding import keyed_seed


@dataclass(frozen=True)
class Grid:
    """Noise levels and noises of every picture: a column for each level, num_noises draws in each.

    levels: standard deviations of the noise in the mixture; none means num_levels equal parts of the
    schedule, in each of which a picture has levels of its own.
    """

    num_levels: int = 4
    num_noises: int = 1
    levels: tuple[float, ...] = ()
    seed: int = 0

    @property
    def designs(self) -> list[Design]:
        """How the draws of each column are made."""
        if self.levels:
            return [
                Design(seed=self._seed(column), fixed_noise_std=level)
                for column, level in enumerate(self.levels)
            ]
        edges = [column / self.num_levels for column in range(self.num_levels + 1)]
        parts = zip(edges, edges[1:], strict=False)
        return [Design(seed=self._seed(column), t_range=part) for column, part in enumerate(parts)]

    def _seed(self, column: int) -> int:
        # Each column draws noises of its own; the training's seed has no part in it.
        return keyed_seed("validation", self.seed, column)

    @property
    def labels(self) -> list[str]:
        """What each column is called."""
        if self.levels:
            return [f"{level:g}" for level in self.levels]
        return ["{:g}\N{EN DASH}{:g}".format(*map(_short, design.t_range)) for design in self.designs]

    @property
    def num_draws(self) -> int:
        """Forward passes of one picture."""
        return self.num_noises * (len(self.levels) or self.num_levels)


def _short(value: float) -> float:
    return round(value, 3)


def batches_of(subjects: Sequence[Subject], batch_size: int) -> Iterator[list[int]]:
    """Indices of subjects that can share a forward pass: equal latents, at most batch_size of them."""
    order = sorted(range(len(subjects)), key=lambda index: tuple(subjects[index].latents.shape))
    for _, group in groupby(order, key=lambda index: tuple(subjects[index].latents.shape)):
        indices = list(group)
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


def measure_grid(
    model: Architecture,
    subjects: Sequence[Subject],
    grid: Grid,
    *,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    tick: Callable[[int], bool] = lambda rows: False,
) -> Floats | None:
    """Losses (subjects, columns), each a mean over its noises; None if tick(rows measured) ended it.

    Every subject has one conditioning. The model is taken as it is: eval mode, averaged weights and the
    like are the caller's.
    """
    losses = numpy.zeros((len(subjects), len(grid.designs)))
    draws = range(grid.num_noises)
    for indices in batches_of(subjects, batch_size):
        chosen = [subjects[index] for index in indices]
        measured = []
        for design in grid.designs:
            found = measure(model, chosen, draws, design, autocast=autocast)
            measured.append(found.losses.double().mean(dim=(1, 2)))
            if tick(len(chosen) * grid.num_noises):
                return None
        losses[indices] = torch.stack(measured, dim=-1).numpy()
    return losses
