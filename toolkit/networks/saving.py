"""LoRA files: written in kohya's keys with alpha, read in kohya's or peft's keys, nothing lost silently."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from toolkit.errors import ModelError, Problem, RunError
from toolkit.metadata import read_metadata, seal
from toolkit.networks.key_formats import (
    LoraTensors,
    group_modules,
    kohya_name,
    other_network_type,
    peft_name,
    to_kohya,
    to_peft,
)
from toolkit.networks.lora import LoraNetwork
from toolkit.runs.atomic import write_bytes

NAMES_IN_MESSAGE = 3


@dataclass(frozen=True, slots=True)
class LoadedLora:
    """What was loaded: every module of the network, and the file's own metadata."""

    num_modules: int
    metadata: dict[str, str]


def save_lora(
    network: LoraNetwork,
    path: str | PathLike[str],
    *,
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str],
) -> None:
    """Write a LoRA file whole or not at all.

    Raises RunError if a weight is not finite in `dtype` or the disk refuses.
    """
    alpha = torch.tensor(float(network.alpha))
    tensors = {
        # Alpha keeps float32: a fraction such as 0.3 changes in half precision, and with it every weight.
        key: tensor.clone() if key.endswith(".alpha") else _cast(key, tensor, dtype)
        for key, tensor in to_kohya(network.state_dict(), alpha).items()
    }
    write_bytes(Path(path), seal(serialize(tensors), metadata))


def load_lora_into(network: LoraNetwork, path: str | PathLike[str]) -> LoadedLora:
    """Give the network the weights of a file, so that it changes the model exactly as the file says.

    A file with another alpha is taken as it acts: the ratio goes into `up`. Raises ModelError, naming
    what does not fit, unless the file has exactly the network's modules with its rank; the network is
    then as before.
    """
    metadata = read_metadata(path)
    file = group_modules(load_file(path))
    _check_kind(path, file.modules, file.foreign_keys)
    peft_names = {
        kohya_name(component, module): peft_name(component, module)
        for component, module, _ in network.named_layers()
    }
    problems = [
        *_wrong_modules(path, file.modules, peft_names),
        *_wrong_shapes(path, file.modules, network),
    ]
    if problems:
        raise ModelError(problems)
    alpha_of = _alphas_in_header(metadata)
    for name, tensors in file.modules.items():
        assert tensors.up is not None and tensors.down is not None  # checked above
        rank = tensors.down.shape[0]
        default = alpha_of(peft_names[name], rank)
        file_alpha = float(tensors.alpha) if tensors.alpha is not None else default
        if file_alpha != network.alpha:
            tensors.up = tensors.up.float() * (file_alpha / network.alpha)
    network.load_state_dict(to_peft(file.modules, peft_names))
    return LoadedLora(num_modules=len(file.modules), metadata=metadata)


def _cast(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    result = tensor.to(dtype).contiguous()
    if torch.isfinite(result).all():
        return result
    diverged = not torch.isfinite(tensor).all()
    name = str(dtype).removeprefix("torch.")
    message = f"{key} cannot be saved as {name}: its largest value is {tensor.abs().max().item():g}"
    remedy = "the weights have diverged: lower the learning rate" if diverged else "save as bf16 or float32"
    raise RunError(Problem("lora.not_finite", message, key="save.dtype", remedy=remedy))


def _check_kind(
    path: str | PathLike[str], modules: Mapping[str, LoraTensors[Tensor]], foreign_keys: list[str]
) -> None:
    if not foreign_keys and modules:
        return
    kind = other_network_type(foreign_keys)
    found = f"found {_some(foreign_keys)}" if foreign_keys else "it has no tensors"
    if kind is not None:
        code, message = "lora.other_type", f"is a {kind} file; only plain LoRA can be loaded here"
    elif not modules:
        code, message = "lora.not_a_lora", f"is not a LoRA for this model: {found}"
    else:
        code, message = "lora.foreign_keys", f"has tensors that are no part of a LoRA: {found}"
    raise ModelError(Problem(code, message, file=str(path)))


def _wrong_modules(
    path: str | PathLike[str], modules: Mapping[str, LoraTensors[Tensor]], expected: Mapping[str, str]
) -> list[Problem]:
    unmatched = [name for name in modules if name not in expected]
    missing = [name for name in expected if name not in modules]
    halves = [name for name, tensors in modules.items() if tensors.down is None or tensors.up is None]
    matched = f"{len(modules) - len(unmatched)} of its {len(modules)} modules match"
    problems = []
    if unmatched:
        message = f"has {len(unmatched)} modules that the network lacks ({matched}): {_some(unmatched)}"
        remedy = "train the text encoder too, or check network_kwargs and transformer_only"
        problems.append(Problem("lora.unmatched", message, file=str(path), remedy=remedy))
    if missing:
        message = f"lacks {len(missing)} of the network's {len(expected)} modules: {_some(missing)}"
        remedy = "choose network_kwargs and train_text_encoder as when it was trained"
        problems.append(Problem("lora.missing", message, file=str(path), remedy=remedy))
    if halves:
        message = f"has modules with only one of up and down: {_some(halves)}"
        problems.append(Problem("lora.incomplete", message, file=str(path)))
    return problems


def _wrong_shapes(
    path: str | PathLike[str], modules: Mapping[str, LoraTensors[Tensor]], network: LoraNetwork
) -> list[Problem]:
    ranks: dict[int, list[str]] = {}
    shapes: list[str] = []
    for name, down, up in _shapes(network):
        tensors = modules.get(name)
        if tensors is None or tensors.down is None or tensors.up is None:
            continue
        if tensors.down.ndim < 2 or tensors.down.shape[0] != down[0]:
            ranks.setdefault(tensors.down.shape[0] if tensors.down.ndim else 0, []).append(name)
        elif tensors.down.shape != down or tensors.up.shape != up:
            shapes.append(f"{name} {tuple(tensors.down.shape)} and {tuple(tensors.up.shape)}")
    problems = []
    for rank, names in sorted(ranks.items()):
        message = f"has rank {rank}, the network has rank {network.rank}: {_some(names)}"
        problems.append(
            Problem("lora.rank", message, file=str(path), key="network.linear", remedy=f"set linear: {rank}")
        )
    if shapes:
        message = f"was made for a model of another size: {_some(shapes)}"
        problems.append(Problem("lora.shape", message, file=str(path)))
    return problems


def _shapes(network: LoraNetwork) -> list[tuple[str, torch.Size, torch.Size]]:
    """(kohya's name, shape of down, shape of up) of every module."""
    parameters = network.named_parameters()
    result = []
    for component, path, _ in network.named_layers():
        name = peft_name(component, path)
        down, up = parameters[f"{name}.lora_A.weight"], parameters[f"{name}.lora_B.weight"]
        result.append((kohya_name(component, path), down.shape, up.shape))
    return result


def _alphas_in_header(metadata: Mapping[str, str]) -> Callable[[str, int], float]:
    """(peft's module name, rank) -> alpha, from diffusers' `lora_adapter_metadata`; without it, the rank."""
    try:
        table: dict[str, Any] = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        table = {}

    def alpha_of(name: str, rank: int) -> float:
        component, _, path = name.partition(".")
        for pattern, alpha in (table.get(f"{component}.alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", path):  # peft's own rule
                return float(alpha)
        return float(table.get(f"{component}.lora_alpha", rank))

    return alpha_of


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_IN_MESSAGE} more" if len(names) > NAMES_IN_MESSAGE else ""
    return ", ".join(names[:NAMES_IN_MESSAGE]) + more
