"""How fast this machine does a recorded computation: its operations done once, on tensors of their shapes.

FLOPs alone say little of the time: a 1 x 1 convolution, a large matrix product and a norm differ tenfold in
what they reach of a processor's peak. So the operations themselves are timed, the costly ones first, for some
seconds; what is left over is taken to be as fast as what was timed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.estimate.tracing import Operation, TensorSpec, Trace, mapped

BUDGET = 20.0  # seconds of timing, about
_TRIAL = 512  # side of the matrices by which costs are guessed before anything was timed
_AT_LEAST = 0.002  # seconds that a fast operation is repeated for
_MOST_REPEATS = 100
_LAYERS = 12  # of each kind, in which small operations are timed together
_FRESH_BYTES = 2**27
# With made-up values these may read beside their tensors, which a CPU refuses and a GPU does not survive.
_NEEDS_VALUES = re.compile(r"attention.*backward|index|scatter|gather|embedding")
# What a device that is lost to this process raises; torch has had a name for it since 2.8.
DEVICE_LOST: tuple[type[Exception], ...] = tuple(
    error for error in (getattr(torch, "AcceleratorError", None),) if error is not None
)
_MAX_BYTES = 2 * 10**9  # of an operation's tensors; larger ones are not tried


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds that operations take here. measured: the share of the seconds that was timed, not inferred.

    flops_per_second: of matrix products and convolutions. per_fresh_byte: seconds that the system takes to
    hand out memory, which a step asks for anew and an operation done again and again does not.
    """

    seconds: dict[int, float]
    measured: float
    flops_per_second: float
    per_fresh_byte: float = 0.0

    def of(self, operations: Iterable[Operation]) -> float:
        """Seconds of these, each as often as it counts."""
        return sum(self.seconds[id(each)] * each.count for each in operations)

    def slowed(self, factor: float) -> Speed:
        """The same with every operation taking so many times as long."""
        return replace(
            self,
            seconds={key: factor * value for key, value in self.seconds.items()},
            per_fresh_byte=factor * self.per_fresh_byte,
        )


def calibrate(operations: Iterable[Operation], device: torch.device, budget: float = BUDGET) -> Speed:
    """Time the operations on a device, for about `budget` seconds in all; those of no trace are not known."""
    every = list(operations)
    on_host = device.type == "cpu"
    rate, bandwidth = _trial_rates(device)

    def guess(each: Operation) -> float:
        return each.flops / rate + each.num_bytes / bandwidth

    timed: dict[int, float] = {}
    started = time.perf_counter()
    for each in sorted(every, key=lambda one: -guess(one) * one.count):
        left = budget - (time.perf_counter() - started)
        if left <= 0:
            break
        fits = 2 * guess(each) < left and each.num_bytes < _MAX_BYTES
        if fits and (on_host or not _NEEDS_VALUES.search(str(each.operator))):
            taken = _seconds(each, device)
            if taken is not None:
                timed[id(each)] = taken
    known = [each for each in every if id(each) in timed]
    factors = {}
    for heavy in (True, False):
        kin = [each for each in known if bool(each.flops) == heavy] or known
        guessed = sum(guess(each) for each in kin)
        factors[heavy] = sum(timed[id(each)] for each in kin) / guessed if guessed else 1.0
    seconds = {id(each): timed.get(id(each), factors[bool(each.flops)] * guess(each)) for each in every}
    total = sum(seconds[id(each)] * each.count for each in every)
    # A device works while Python's layers go on, and operations in a row show which of the two is slower.
    around = _around_a_call(device) if on_host else 0.0
    products = [each for each in known if each.flops]
    busy = sum(timed[id(each)] * each.count for each in products)
    return Speed(
        {key: around + value for key, value in seconds.items()},
        measured=sum(timed[id(each)] * each.count for each in known) / total if total else 1.0,
        flops_per_second=sum(each.flops * each.count for each in products) / busy if busy else rate,
        per_fresh_byte=_fresh_memory(device) if on_host else 0.0,
    )


def clock(device: torch.device) -> Callable[[], float]:
    """What time is told by: that of the process on a CPU, where others work too; else the wall's."""
    if device.type == "cpu":
        return time.process_time

    def synchronized() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return synchronized


def _trial_rates(device: torch.device) -> tuple[float, float]:
    """(FLOPs, bytes) a second of a matrix product and of an addition."""
    now = clock(device)
    a = torch.full((_TRIAL, _TRIAL), 0.5, device=device)
    b = torch.full((2**22,), 0.5, device=device)
    product = _repeat(lambda: a @ a, now)
    addition = _repeat(lambda: b + b, now)
    return 2 * _TRIAL**3 / product, 2 * b.nbytes / addition


def _around_a_call(device: torch.device) -> float:
    """Seconds that Python's layers and autograd add to an operation: small ones in a network, less those."""
    layers = [layer for _ in range(_LAYERS) for layer in (nn.Linear(8, 8), nn.SiLU(), nn.LayerNorm(8))]
    network, x = nn.Sequential(*layers).to(device), torch.ones(2, 8, device=device)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        network(x).sum().backward()

    together = _repeat(step, clock(device))
    network.zero_grad(set_to_none=True)
    with Trace() as trace:
        network(x).sum().backward()
    operations = trace.operations.values()
    alone = sum(each.count * (_seconds(each, device) or 0.0) for each in operations)
    num_calls = sum(each.count for each in operations)
    added: float = max(0.0, together - alone) / num_calls
    return added


def _fresh_memory(device: torch.device) -> float:
    """Seconds a byte that writing to memory takes the first time more than the second, and giving it back."""
    now = clock(device)
    begin = now()
    memory = torch.empty(_FRESH_BYTES // 4, device=device).fill_(0.5)
    middle = now()
    memory.fill_(0.25)
    end = now()
    del memory
    return max(0.0, (middle - begin) - (end - middle) + (now() - end)) / _FRESH_BYTES


def _seconds(operation: Operation, device: torch.device) -> float | None:
    """Seconds of one call; None if it cannot be done on made-up values."""
    args = mapped(operation.args, _made_up)
    kwargs = mapped(operation.kwargs, _made_up)

    def call() -> Any:
        return operation.operator(*args, **kwargs)

    try:
        with torch.no_grad():
            return _repeat(call, clock(device))
    except DEVICE_LOST:
        raise  # nothing more can be timed there, which its parent RuntimeError would not say
    except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError):
        return None  # an index or a size that depends on values


def _repeat(call: Callable[[], Any], now: Callable[[], float]) -> float:
    """Seconds of a call, the first one left out: it finds the kernel and the memory."""
    call()
    begin = now()
    call()
    once = now() - begin
    repeats = min(_MOST_REPEATS, int(_AT_LEAST / max(once, 1e-6)))
    if repeats < 1:
        return once
    begin = now()
    for _ in range(repeats):
        call()
    return (now() - begin) / repeats


def _made_up(leaf: Any) -> Any:
    """A tensor for a spec: 0.5, False or index 0 everywhere; anything else as it is."""
    if not isinstance(leaf, TensorSpec):
        return leaf
    size = 1 + sum((side - 1) * step for side, step in zip(leaf.shape, leaf.stride, strict=True))
    value = 0.5 if leaf.dtype.is_floating_point else 0
    memory: Tensor = torch.full((max(size, 1),), value, dtype=leaf.dtype, device=leaf.device)
    return memory.as_strided(leaf.shape, leaf.stride)
