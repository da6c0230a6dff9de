"""Weights kept in bfloat16, whose updates are rounded stochastically (arXiv:2010.06192).

bfloat16 has 8 bits of mantissa: an update below 1/512 of a weight is lost when it is rounded to the nearest,
at usual rates all of them. Rounded up or down with the chances that keep the mean, updates of any size count.
The optimizer sees float32 stand-ins, filled for the moment of its step and rounded back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 2**26  # elements that are in float32 at a time, where an optimizer can step over a part

# Optimizers that keep everything they know of a parameter with that parameter, so that parts may step alone.
_STEPS_IN_PARTS = ("torch.optim", "bitsandbytes", "transformers")


def round_stochastically(values: Tensor) -> Tensor:
    """values (...) float32, finite -> (...) bfloat16, each one of its two neighbours, right in the mean.

    Draws from the global generator of the values' device. What bfloat16 can hold stays as it is.
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 2**16, bits.shape, dtype=torch.int32, device=bits.device)
    # bfloat16 is the upper half of a float32: noise below carries over as often as the lower half is large.
    return ((bits + noise) & -(2**16)).view(torch.float32).to(torch.bfloat16)


class RoundedWeights:
    """bfloat16 weights and their float32 stand-ins; `stand_ins` and `groups` are for the optimizer."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.stand_ins = {name: nn.Parameter(_hollow(weight)) for name, weight in parameters.items()}
        self._weights = dict(parameters)
        self._weight_of = {id(self.stand_ins[name]): weight for name, weight in parameters.items()}
        self._stand_in_of = {id(weight): self.stand_ins[name] for name, weight in parameters.items()}

    def groups(self, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups with the stand-ins in place of the weights."""
        return [{**group, "params": [self._stand_in_of[id(p)] for p in group["params"]]} for group in groups]

    def step(self, optimizer: torch.optim.Optimizer, apply: Callable[[], object]) -> None:
        """Let apply() step the optimizer over the stand-ins, and round the result; gradients are dropped."""
        in_parts = type(optimizer).__module__.startswith(_STEPS_IN_PARTS)
        for part in (
            _parts(optimizer) if in_parts else [[group["params"] for group in optimizer.param_groups]]
        ):
            with _only(optimizer, part):
                stand_ins = [stand_in for group in part for stand_in in group]
                self._fill(stand_ins)
                try:
                    apply()
                    self._round(stand_ins)
                finally:
                    self._hollow_out(stand_ins)

    def _fill(self, stand_ins: Sequence[nn.Parameter]) -> None:
        for stand_in in stand_ins:
            weight = self._weight_of[id(stand_in)]
            stand_in.data = weight.detach().float()
            stand_in.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None

    @torch.no_grad()
    def _round(self, stand_ins: Sequence[nn.Parameter]) -> None:
        for stand_in in stand_ins:
            self._weight_of[id(stand_in)].copy_(round_stochastically(stand_in))

    def _hollow_out(self, stand_ins: Sequence[nn.Parameter]) -> None:
        for stand_in in stand_ins:
            stand_in.grad = None
            stand_in.data = _hollow(self._weight_of[id(stand_in)])

    def drop_gradients(self) -> None:
        """Forget the gradients of the weights."""
        for weight in self._weights.values():
            weight.grad = None


def _hollow(weight: Tensor) -> Tensor:
    """A float32 tensor of the weight's shape and device without memory behind it."""
    return torch.zeros((), dtype=torch.float32, device=weight.device).expand(weight.shape)


def _parts(optimizer: torch.optim.Optimizer) -> Iterator[list[list[nn.Parameter]]]:
    """Groups of parameters, each time a part of them: about CHUNK elements."""
    for index, group in enumerate(optimizer.param_groups):
        part: list[nn.Parameter] = []
        for parameter in group["params"]:
            part.append(parameter)
            if sum(each.numel() for each in part) >= CHUNK:
                yield _at(index, part, len(optimizer.param_groups))
                part = []
        if part:
            yield _at(index, part, len(optimizer.param_groups))


def _at(index: int, part: list[nn.Parameter], count: int) -> list[list[nn.Parameter]]:
    return [part if at == index else [] for at in range(count)]


@contextmanager
def _only(optimizer: torch.optim.Optimizer, part: Sequence[list[nn.Parameter]]) -> Iterator[None]:
    """The optimizer's groups hold these parameters alone, until the end."""
    whole = [group["params"] for group in optimizer.param_groups]
    for group, params in zip(optimizer.param_groups, part, strict=True):
        group["params"] = params
    try:
        yield
    finally:
        for group, params in zip(optimizer.param_groups, whole, strict=True):
            group["params"] = params
