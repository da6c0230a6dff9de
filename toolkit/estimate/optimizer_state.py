"""What an optimizer keeps of its parameters, and how long its step takes: asked of the optimizer itself.

One parameter of each shape takes a real step, on values made up; the others of that shape keep as much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.estimate.calibration import clock
from toolkit.training.optimizers import make_optimizer

TRIED = 16 * 2**20  # elements that take a step at most to time it


@dataclass(frozen=True, slots=True)
class OptimizerCost:
    """num_bytes: of its state. seconds: of a step, with clipping and the average of the weights, if any."""

    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class OptimizerChoice:
    """An optimizer as a config names it."""

    name: str
    params: Mapping[str, Any]
    lr: float


def optimizer_cost(
    choice: OptimizerChoice,
    parameters: Mapping[str, Tensor],
    *,
    zeros: frozenset[str],
    device: torch.device,
    averaged: bool = False,
) -> OptimizerCost:
    """The state of the optimizer for parameters of these shapes. zeros: names of those that begin so."""
    kinds: Counter[tuple[torch.Size, bool, bool]] = Counter()
    names: dict[tuple[torch.Size, bool, bool], str] = {}
    for name, value in parameters.items():
        kind = (value.shape, name in zeros, "embed" in name.lower())
        kinds[kind] += 1
        names.setdefault(kind, name)
    num_bytes = sum(
        count * _state_bytes(choice, names[kind], kind[0], zero=kind[1], device=device)
        for kind, count in kinds.items()
    )
    shapes = [value.shape for value in parameters.values()]
    return OptimizerCost(num_bytes, _step_seconds(choice, shapes, device=device, averaged=averaged))


def _state_bytes(
    choice: OptimizerChoice, name: str, shape: torch.Size, *, zero: bool, device: torch.device
) -> int:
    weight = nn.Parameter(torch.full(shape, 0.0 if zero else 0.5, device=device))
    weight.grad = torch.full_like(weight, 1e-3)
    optimizer = _made(choice, {name: weight})
    optimizer.step()
    seen: dict[int, int] = {}
    for tensor in _tensors(optimizer.state[weight]):
        storage = tensor.untyped_storage()
        if storage.data_ptr() != weight.untyped_storage().data_ptr():
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def _tensors(tree: Any) -> list[Tensor]:
    """All tensors in a nest of dicts and lists."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        return [tensor for value in tree.values() for tensor in _tensors(value)]
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [tensor for value in tree for tensor in _tensors(value)]
    return []


def _made(choice: OptimizerChoice, named: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    groups = [{"params": list(named.values())}]
    return make_optimizer(choice.name, groups, lr=choice.lr, params=choice.params, named=named)


def _step_seconds(
    choice: OptimizerChoice, shapes: Sequence[torch.Size], *, device: torch.device, averaged: bool
) -> float:
    """Seconds of a step over parameters of these shapes; of a part of them if there are many."""
    named: dict[str, nn.Parameter] = {}
    tried = 0
    total = sum(shape.numel() for shape in shapes)
    stride = max(1, -(-total // TRIED))
    for index, shape in enumerate(shapes[::stride]):
        if tried and tried + shape.numel() > 2 * TRIED:
            continue
        named[str(index)] = nn.Parameter(torch.full(shape, 0.5, device=device))
        tried += shape.numel()
    if not named:
        return 0.0
    optimizer, now = _made(choice, named), clock(device)
    averages = [value.detach().clone() for value in named.values()] if averaged else []
    seconds = 0.0
    for _ in range(3):  # the first makes the state
        for value in named.values():
            value.grad = torch.full_like(value, 1e-3)
        begin = now()
        nn.utils.clip_grad_norm_(list(named.values()), 1.0)
        optimizer.step()
        if averaged:
            torch._foreach_lerp_(averages, [value.detach() for value in named.values()], 0.01)
        optimizer.zero_grad(set_to_none=True)
        seconds = now() - begin
    return seconds * total / tried
