"""Devices and precision, through Hugging Face's accelerate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from toolkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from accelerate import Accelerator

# Every spelling a config may use.
DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "float": torch.float32,
    "single": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "half": torch.float16,
    "float8": torch.float8_e4m3fn,
    "8bit": torch.float8_e4m3fn,
}
_MIXED_PRECISION = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


def parse_dtype(name: str) -> torch.dtype:
    """The dtype of a config's spelling. Raises ConfigError."""
    dtype = DTYPES.get(name.lower().removeprefix("torch."))
    if dtype is None:
        raise ConfigError(Problem("config.dtype", f"unknown dtype '{name}'; known: {', '.join(DTYPES)}"))
    return dtype


def pick_device(name: str | None = None) -> torch.device:
    """The device of that name (`cuda`, `cuda:1`, `gpu`, `mps`, `cpu`), or the best there is (None, `auto`).

    Raises ConfigError if it is not there: training on a CPU by surprise would take weeks.
    """
    wanted = (name or "auto").lower().replace("gpu", "cuda")
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        problem = Problem(
            "config.device", f"unknown device '{name}'", key="device", remedy="cuda:0, mps or cpu"
        )
        raise ConfigError(problem) from error
    missing = _missing(device)
    if missing:
        raise ConfigError(
            Problem("config.device", f"'{name}': {missing}", key="device", remedy="set device: cpu")
        )
    return torch.device("cpu") if device.type == "cpu" else device


def _missing(device: torch.device) -> str | None:
    """Why nothing can be trained on a device here, or None if it is there."""
    if device.type == "cpu":
        count, what = 1, "CPU device"
    elif device.type == "cuda":
        count, what = torch.cuda.device_count() if torch.cuda.is_available() else 0, "CUDA device"
    elif device.type == "mps":
        count, what = int(torch.backends.mps.is_available()), "MPS device"
    elif device.type == "xpu":
        count, what = torch.xpu.device_count() if torch.xpu.is_available() else 0, "XPU device"
    else:
        return "this toolkit cannot train on it"
    if count == 0:
        return f"this torch sees no {what}"
    if (device.index or 0) < count:
        return None
    return f"there is one {what}" if count == 1 else f"there are only {count} {what}s"


def make_accelerator(device: torch.device, dtype: torch.dtype) -> Accelerator:
    """An accelerator on `device` that runs the forward pass in `dtype` by autocast. Raises ConfigError.

    Its gradient accumulation stays at 1: the trainer divides by the items of the whole step itself.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    if dtype not in _MIXED_PRECISION:
        raise ConfigError(
            Problem("config.dtype", f"cannot train in {dtype}", key="train.dtype", remedy="use bf16")
        )
    if dtype == torch.float16 and device.type == "cpu":
        problem = "float16 training needs a GPU"
        raise ConfigError(Problem("config.dtype", problem, key="train.dtype", remedy="use bf16 or fp32"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # accelerate keeps one state for the process; a second job may have another precision or device.
    if PartialState._shared_state and PartialState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    made = Accelerator(
        mixed_precision=_MIXED_PRECISION[dtype],
        gradient_accumulation_steps=1,
        cpu=device.type == "cpu",
    )
    if made.device.type != device.type:
        remedy = "set device: auto, and leave ACCELERATE_USE_CPU unset"
        message = f"accelerate chose '{made.device}' instead of '{device}'"
        raise ConfigError(Problem("config.device", message, key="device", remedy=remedy))
    return made


def peak_device_bytes(device: torch.device) -> int | None:
    """The most bytes of tensors that this process has had on a CUDA device; None elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
