"""Models ready to use: loaded for inference, with LoRAs on top."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from toolkit.errors import ModelError, Problem
from toolkit.models.shared.components import quiet_loading
from toolkit.stable_diffusion_model import StableDiffusion

OTHER_MODEL = "was it trained on another architecture?"
# How torch tells that a weight has another shape than its parameter.
_OTHER_SHAPE = re.compile(r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)")
# How the formats in use end the name of a module's down projection.
_DOWN = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".lora_linear_layer.down.weight")


def load_model_for_inference(
    name_or_path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> StableDiffusion:
    """A frozen model in eval mode. options as in StableDiffusion.load. Raises ModelError."""
    sd = StableDiffusion.load(name_or_path, arch=arch, device=device, dtype=dtype, **options)
    sd.architecture.freeze()
    return sd


class AppliedLora:
    """The LoRAs that `apply_lora` put on a model, as one network whose strength can be set."""

    def __init__(self, sd: StableDiffusion) -> None:
        self._sd = sd
        self._multiplier = 1.0

    @property
    def multiplier(self) -> float:
        """Scales every applied LoRA beside its own multiplier; 0 is the base exactly."""
        return self._multiplier

    @multiplier.setter
    def multiplier(self, value: float) -> None:
        self._multiplier = value
        loras = self._sd.loras
        self._sd.pipeline().set_adapters(list(loras), [own * value for own in loras.values()])

    @contextmanager
    def enabled(self, on: bool = True) -> Iterator[None]:
        """Inside, the LoRAs act as they are set (on) or not at all; afterwards as before."""
        before = self.multiplier
        self.multiplier = before if on else 0.0
        try:
            yield
        finally:
            self.multiplier = before


def apply_lora(sd: StableDiffusion, path: str | os.PathLike[str], multiplier: float = 1.0) -> int:
    """Put a LoRA file on the model through diffusers; returns the number of modules it changes.

    Raises ModelError if the file is not a LoRA, or if one of its modules has no place in this model: a LoRA
    that is applied in part draws something else than what was trained.
    """
    path = Path(path)
    in_file = _count_modules(path)
    pipeline = sd.pipeline()
    name = f"lora_{len(sd.loras)}"
    try:
        with quiet_loading():
            pipeline.load_lora_weights(
                str(path.parent), weight_name=path.name, adapter_name=name, local_files_only=True
            )
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        problem = _why_not(str(error), in_file)
        raise ModelError(Problem("model.lora", problem, file=str(path), remedy=OTHER_MODEL)) from error
    matched = sum(name in getattr(module, "lora_A", {}) for module in _modules(sd))
    if matched != in_file:
        if matched:
            pipeline.delete_adapters(name)
        problem = f"only {matched} of its {in_file} modules have a place in this model"
        raise ModelError(Problem("model.lora", problem, file=str(path), remedy=OTHER_MODEL))
    sd.loras[name] = multiplier
    pipeline.set_adapters(list(sd.loras), list(sd.loras.values()))
    return matched


def _why_not(error: str, num_modules: int) -> str:
    """Why a LoRA cannot be applied, in one line; peft and torch name every module and every weight."""
    if error.startswith("Target modules"):
        return f"none of its {num_modules} modules has a place in this model"
    others = _OTHER_SHAPE.findall(error)
    if others:
        one = "{}: {} instead of {}".format(*others[0])
        return f"{len(others)} of its weights have another shape here, such as {one}"
    return f"cannot be applied to this model: {shorten(error, 300)}"


def _modules(sd: StableDiffusion) -> list[nn.Module]:
    """Every module that a LoRA may sit on."""
    return [module for root in sd.modules.values() for module in root.modules()]


def _count_modules(path: Path) -> int:
    """How many modules a LoRA file changes. Raises ModelError if it cannot be read or changes none."""
    try:
        with safe_open(path, framework="pt") as file:
            count = len({key for key in file.keys() if key.endswith(_DOWN)})  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        problem = f"is not a readable .safetensors file: {error}"
        raise ModelError(Problem("model.lora", problem, file=str(path))) from error
    if not count:
        raise ModelError(Problem("model.lora", "holds no LoRA", file=str(path)))
    return count
