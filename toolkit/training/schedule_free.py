"""Schedule-free optimizers (arXiv:2405.15682): what they train is not what they hand out.

Gradients are taken at y, between a fast sequence z and its running average x; x is the result. The parameters
hold y while training, and x wherever the model is looked at: in previews and in what is saved of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ScheduleFreeAverage:
    """The average that a schedule-free optimizer keeps of its parameters."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._parameters = list(parameters)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters are the average; afterwards what they were, bit for bit.

        The optimizer's own way back, another interpolation, is off by a rounding, and a look at the model
        would change its training.
        """
        kept = [parameter.detach().clone() for parameter in self._parameters]
        self._optimizer.eval()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self._optimizer.train()  # type: ignore[attr-defined]
            _copy(self._parameters, kept)


def schedule_free_average(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
) -> ScheduleFreeAverage | None:
    """The average of a schedule-free optimizer; None for every other one."""
    if not all("train_mode" in group for group in optimizer.param_groups):
        return None
    return ScheduleFreeAverage(optimizer, parameters)


@torch.no_grad()
def _copy(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
