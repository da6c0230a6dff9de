"""Hashes of tensors, and a store that keeps copies of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from toolkit.data.tensor_store import TensorStore, module_hash, tensors_hash


def test_hashes_tell_every_difference() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    variants = [
        base,
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.full((1,), 2.0)},
        {"a": torch.zeros(2, 3)},
    ]
    assert len({tensors_hash(tensors) for tensors in variants}) == len(variants)
    assert tensors_hash(dict(reversed(base.items()))) == tensors_hash(base)
    module = nn.Linear(2, 2)
    assert module_hash(module) != module_hash(module, 0.18215) != module_hash(module, 0.13025)
    tensors_hash({"empty": torch.empty(0, 3), "scalar": torch.tensor(1.0), "half": torch.ones(2).bfloat16()})


def test_a_store_keeps_copies(tmp_path: Path) -> None:
    for store in (TensorStore(None), TensorStore(tmp_path)):
        tensor = torch.zeros(3)
        store.put("ab", {"x": tensor})
        tensor += 1
        assert store.get("ab")["x"].tolist() == [0, 0, 0]  # type: ignore[index]
