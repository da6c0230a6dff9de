"""Exponential moving average of the trained weights, updated in place by a few fused calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

FEEDBACK = 10  # ai-toolkit's


class Averages(Protocol):
    """An average of the trained weights that can stand in for them."""

    def applied(self) -> AbstractContextManager[None]:
        """Inside, the model has the averaged weights; afterwards its own, bit for bit."""


class ExponentialMovingAverage:
    """shadow <- d * shadow + (1 - d) * weights after every update, in float32.

    d = min(decay, (1 + n) / (10 + n)) at the n-th update, the warm-up of diffusers' EMAModel, so that the
    first steps are not dominated by the starting weights.

    Two ways of ai-toolkit to act on the weights in turn, at every update: feedback draws them towards the
    average, by ten times the share that the average moves towards them (at most onto it); multiplier, if not
    1, scales them.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        decay: float,
        *,
        feedback: bool = False,
        multiplier: float = 1.0,
    ) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"EMA decay {decay} must be in [0, 1)")
        self.decay = decay
        self.num_updates = 0
        self._feedback, self._multiplier = feedback, multiplier
        self._parameters = dict(parameters)
        self.shadow: dict[str, Tensor] = {
            name: parameter.detach().clone().float() for name, parameter in self._parameters.items()
        }

    def decay_at(self, num_updates: int) -> float:
        """The decay used by update number `num_updates` (from 1)."""
        return min(self.decay, (1 + num_updates) / (10 + num_updates))

    @torch.no_grad()
    def update(self, finite: Tensor | None = None) -> None:
        """Move the shadow towards the weights; nothing is read back from the device.

        finite: a bool tensor (); where it is false (the update was refused) the shadow stays as it is.
        """
        self.num_updates += 1
        share = 1.0 - self.decay_at(self.num_updates)
        shadow = list(self.shadow.values())
        own = [parameter.detach() for parameter in self._parameters.values()]
        weights = [weight.float() for weight in own]
        pulled = weights
        if self._feedback:
            pulled = list(torch._foreach_lerp(weights, shadow, min(1.0, FEEDBACK * share)))
        if self._multiplier != 1:
            pulled = list(torch._foreach_mul(pulled, self._multiplier))
        if finite is None:
            torch._foreach_lerp_(shadow, weights, share)
        else:
            torch._foreach_lerp_(shadow, weights, [finite.float() * share] * len(shadow))
        if self._feedback or self._multiplier != 1:
            for weight, value in zip(own, pulled, strict=True):
                weight.copy_(value if finite is None else torch.where(finite, value, weight.float()))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own, bit for bit."""
        kept = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    @torch.no_grad()
    def load(self, shadow: Mapping[str, Tensor], num_updates: int) -> None:
        """Continue from a saved average. Raises KeyError if a weight is missing."""
        for name, tensor in self.shadow.items():
            tensor.copy_(shadow[name])
        self.num_updates = num_updates
