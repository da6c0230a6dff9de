"""Devices, dtypes and accelerate's precision."""

from __future__ import annotations

import pytest
import torch

from toolkit.accelerator import make_accelerator, parse_dtype, pick_device
from toolkit.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (("fp32", "float32", "float", "single", "torch.float32"), torch.float32),
        (("bf16", "bfloat16", "BF16"), torch.bfloat16),
        (("fp16", "float16", "half"), torch.float16),
        (("8bit", "float8"), torch.float8_e4m3fn),
    ],
)
def test_every_spelling_of_a_dtype(names, dtype):
    assert {parse_dtype(name) for name in names} == {dtype}


def test_an_unknown_dtype_is_named():
    with pytest.raises(ConfigError, match="unknown dtype 'fp17'"):
        parse_dtype("fp17")


def test_devices():
    assert pick_device("cpu") == CPU
    assert pick_device(None) == pick_device("auto")
    with pytest.raises(ConfigError, match="unknown device 'tpuu'"):
        pick_device("tpuu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "gpu:1"])
def test_a_missing_device_is_an_error_with_a_remedy(name):
    with pytest.raises(ConfigError, match=f"device: '{name}': .*no CUDA device.*device: cpu"):
        pick_device(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cpu:3", "there is one CPU device"),
        ("cuda:99", "CUDA device"),
        ("mps:2", "MPS"),
        ("xpu:99", "XPU"),
        ("meta", "cannot train on it"),
    ],
)
def test_a_device_that_is_not_there_is_never_another_one(name, said):
    with pytest.raises(ConfigError, match=f"device: '{name}': .*{said}.*device: cpu"):
        pick_device(name)


def test_the_first_processor_is_the_processor():
    assert pick_device("cpu:0") == CPU


@pytest.mark.skipif(torch.xpu.is_available(), reason="asks for a device that is not there")
def test_an_accelerator_on_another_device_than_asked_for_is_refused():
    with pytest.raises(ConfigError, match="device: accelerate chose '.*' instead of 'xpu'"):
        make_accelerator(torch.device("xpu"), torch.float32)
    assert make_accelerator(CPU, torch.float32).device == CPU


def test_precision_follows_the_dtype_also_for_a_second_job():
    for dtype, name in [(torch.float32, "no"), (torch.bfloat16, "bf16"), (torch.float32, "no")]:
        accelerator = make_accelerator(CPU, dtype)
        assert accelerator.mixed_precision == name
        assert accelerator.device == CPU
        assert accelerator.gradient_accumulation_steps == 1
        with accelerator.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_precision_that_cannot_train_here_is_refused(dtype):
    with pytest.raises(ConfigError, match="train.dtype"):
        make_accelerator(CPU, dtype)
