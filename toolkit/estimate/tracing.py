"""What a computation consists of: its operations with their shapes and FLOPs, and the bytes alive in it.

Works on fake tensors (toolkit.models.shared.weightless), which have shapes and no values, as well as on real
ones. A storage counts once, however many tensors look into it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def num_bytes(self) -> int:
        """Bytes of its elements."""
        count = 1
        for side in self.shape:
            count *= side
        return count * self.dtype.itemsize


@dataclass(slots=True)
class Operation:
    """One kind of call: the operator and its arguments with specs for tensors; how often, and its FLOPs."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    flops: int
    num_bytes: int
    count: int = 0


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operator that is called inside, and the bytes of the storages that are made there.

    live, peak: bytes of storages made inside and still alive, now and at most. A value that fake tensors are
    asked for is 1, so that branches on drawn numbers are taken. scale: how often each call counts.
    """

    def __init__(self, scale: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: dict[Hashable, Operation] = {}
        self.scale = scale
        self.live = self.peak = 0
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if operator is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1
        for tensor in _tensors((args, kwargs)):
            self._known[tensor.untyped_storage()] = None
        made = operator(*args, **kwargs)
        for tensor in _tensors(made):
            self._born(tensor.untyped_storage())
        self._record(operator, args, kwargs, made)
        return made

    @property
    def flops(self) -> int:
        """FLOPs of all calls; multiplications and additions count one each."""
        return sum(each.flops * each.count for each in self.operations.values())

    def _born(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        num_bytes = storage.nbytes()
        self._known[storage] = None
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._died, num_bytes).atexit = False

    def _died(self, num_bytes: int) -> None:
        self.live -= num_bytes

    def _record(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
        specs = _specs((args, kwargs))
        key = (operator, _frozen(specs))
        found = self.operations.get(key)
        if found is None:
            count = flop_registry.get(operator.overloadpacket)
            flops = 0 if count is None else int(count(*args, **kwargs, out_val=made))
            moved = sum(_num_bytes(tensor) for tensor in _tensors((args, kwargs, made)))
            found = self.operations[key] = Operation(operator, specs[0], specs[1], flops, moved)
        found.count += self.scale


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device)


def _specs(tree: Any) -> Any:
    """The same nest of tuples, lists and dicts with a spec for each tensor."""
    return mapped(tree, lambda leaf: _spec(leaf) if isinstance(leaf, Tensor) else leaf)


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """A nest of tuples, lists and dicts with its leaves changed."""
    if isinstance(tree, tuple | list) and not isinstance(tree, torch.Size):
        return type(tree)(mapped(each, change) for each in tree)
    if isinstance(tree, dict):
        return {key: mapped(value, change) for key, value in tree.items()}
    return change(tree)


def _frozen(tree: Any) -> Hashable:
    if isinstance(tree, tuple | list):
        return tuple(_frozen(each) for each in tree)
    if isinstance(tree, dict):
        return tuple((key, _frozen(value)) for key, value in tree.items())
    return tree if isinstance(tree, Hashable) else repr(tree)
