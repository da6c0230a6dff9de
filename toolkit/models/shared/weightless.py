"""Models as shapes: every part built from its config file, no weight read, no memory taken for any.

Inside `without_weights()` they are torch's fake tensors: with shapes, dtypes and devices and no values. The very
loaders, layers and losses of a run work on them, which is how `--check --estimate` knows what one needs.
Imports torch when it is used only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch._subclasses.fake_tensor import FakeTensorMode

_MODE: ContextVar[tuple[FakeTensorMode, torch.device | str] | None] = ContextVar("weightless", default=None)


def is_weightless() -> bool:
    """Whether models are being built as shapes."""
    return _MODE.get() is not None


@contextmanager
def without_weights(device: torch.device | str = "cpu") -> Iterator[FakeTensorMode]:
    """Inside, the weights of models are shapes, of a device from the start: modules of shapes cannot be moved.

    The mode it gives computes with them, once entered.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    token = _MODE.set((mode, device))
    try:
        yield mode
    finally:
        _MODE.reset(token)


def fill_with_shapes(module: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Put fake tensors in place of a module's weights, floats in dtype if one is given; returns it."""
    from torch._subclasses.fake_tensor import FakeTensor

    for each in module.modules():
        for own in (each._parameters, each._buffers):
            for name, value in own.items():
                if value is not None and not isinstance(value, FakeTensor):
                    own[name] = _shape_of(value, dtype)  # type: ignore[assignment]
    return module


def begins_at_zero(weight: Tensor) -> bool:
    """Whether a weight without values stands for one that was all zeros, as half of a LoRA's are."""
    return bool(getattr(weight, "begins_at_zero", False))


def _shape_of(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    import torch
    from torch import nn

    found = _MODE.get()
    assert found is not None
    mode, device = found
    wanted = dtype if dtype is not None and value.is_floating_point() else value.dtype
    with mode:
        fake = torch.empty(value.shape, dtype=wanted, device=device)
        if not isinstance(value, nn.Parameter):
            return fake
        made = nn.Parameter(fake, requires_grad=value.requires_grad)
    made.begins_at_zero = not value.is_meta and not bool(value.any())  # type: ignore[attr-defined]
    return made
