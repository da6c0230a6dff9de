"""Our writer of safetensors files against the library's reader."""

import hashlib
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from toolkit.training.tensor_files import NAMES, write_tensors


def test_every_dtype_and_shape_is_read_back_by_safetensors(tmp_path):
    tensors = {f"a {dtype}": (torch.randn(3, 5) * 4).abs().to(dtype) for dtype in NAMES}
    tensors |= {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "odd": torch.ones(7, dtype=torch.uint8),
    }
    tensors["turned"] = torch.randn(4, 6).t()
    digest = write_tensors(tmp_path / "a.safetensors", tensors)
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape, name
        same = loaded[name].reshape(-1).view(torch.uint8), tensor.contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(*same), name
    assert digest == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()


def test_nothing_to_write_is_a_file_too(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert list(file.keys()) == []


def test_what_the_format_lacks_is_refused(tmp_path):
    with pytest.raises(TypeError, match="complex64 of 'z'"):
        write_tensors(tmp_path / "a.safetensors", {"z": torch.zeros(2, dtype=torch.complex64)})


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[: max(1, len(data) // 3)]))
    tensor = torch.randn(1000)
    write_tensors(tmp_path / "a.safetensors", {"a": tensor})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], tensor)
