"""Network files: written in the keys of their architecture, read in any keys, nothing lost silently."""

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
from toolkit.networks.adapters import AdapterNetwork, layer_parameters
from toolkit.networks.key_formats import (
    ALPHA,
    DORA,
    DOWN,
    STYLES,
    UP,
    KeyStyle,
    file_key,
    file_kind,
    group_modules,
    kohya_name,
    other_network_type,
    peft_name,
)
from toolkit.networks.layouts import from_file, to_file
from toolkit.runs.atomic import write_bytes

NAMES_IN_MESSAGE = 3
Modules = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class LoadedNetwork:
    """What was loaded: every module of the network, the file's own metadata, and what is worth knowing."""

    num_modules: int
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def save_network(
    network: AdapterNetwork,
    path: str | PathLike[str],
    *,
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str],
    style: KeyStyle = STYLES["sd"],
) -> None:
    """Write a network's file whole or not at all, in the keys of `style`.

    Raises RunError if a weight is not finite in `dtype` or the disk refuses.
    """
    tensors: dict[str, Tensor] = {}
    for component, module, layer in network.named_layers():
        parts = to_file(layer)
        if style.dotted and DOWN in parts:
            # These keys have no alpha: readers take the scale for 1.
            parts[UP] = parts[UP] * (float(parts.pop(ALPHA)) / parts[DOWN].shape[0])
        if style.dotted and DORA in parts:
            # peft's own shape: its reader takes no other.
            parts[DORA] = parts[DORA].reshape(layer_parameters(layer)["lora_magnitude_vector"].shape)
        for part, tensor in parts.items():
            key = file_key(component, module, part, style)
            # Alpha keeps float32: a fraction such as 0.3 changes in half precision, and with it every weight.
            tensors[key] = tensor if part == ALPHA else _cast(key, tensor, dtype)
    write_bytes(Path(path), seal(serialize(dict(sorted(tensors.items()))), metadata))


def load_network(network: AdapterNetwork, path: str | PathLike[str]) -> LoadedNetwork:
    """Give the network the weights of a file, so that it changes the model exactly as the file says.

    Another alpha goes into a factor. Another rank is padded, which keeps what the file does, or cut to its
    largest singular values; both are told. Raises ModelError, naming what does not fit, unless the file has
    exactly the network's modules; the network is then as before.
    """
    metadata = read_metadata(path)
    file = group_modules(load_file(path), network.denoiser)
    check_file(path, file.modules, file.foreign_keys)
    kind = file_kind(file.modules)
    if kind != network.kind.name:
        message = f"is a {kind} file, the network is of type {network.kind.name}"
        raise ModelError(
            Problem("lora.other_type", message, file=str(path), remedy=f"set network.type: {kind}")
        )
    layers = {
        kohya_name(c, module): (peft_name(c, module), layer) for c, module, layer in network.named_layers()
    }
    problems = _wrong_modules(path, file.modules, [*layers])
    alpha_of = _alphas_in_header(metadata)
    state: dict[str, Tensor] = {}
    reasons: list[str] = []
    for name, tensors in file.modules.items():
        if name not in layers or problems:
            continue
        dotted, layer = layers[name]
        try:
            parts = from_file(tensors, layer, alpha_of(dotted))
        except ValueError as reason:
            reasons.append(f"{name} {reason}")
        else:
            state |= {f"{dotted}.{part}": tensor for part, tensor in parts.items()}
    if reasons:
        message = f"was made for a model or a network of another size: {_some(reasons)}"
        problems.append(Problem("lora.shape", message, file=str(path)))
    if problems:
        raise ModelError(problems)
    network.load_state_dict(state)
    return LoadedNetwork(len(file.modules), metadata, tuple(_rank_notes(path, file.modules, network)))


def _rank_notes(path: str | PathLike[str], modules: Modules, network: AdapterNetwork) -> list[str]:
    """What a change of rank means for the weights, if there was one."""
    ranks = {name: tensors[DOWN].shape[0] for name, tensors in modules.items() if DOWN in tensors}
    own = {kohya_name(c, module): layer.r for c, module, layer in network.named_layers()}
    changed = {(rank, next(iter(own[name].values()))) for name, rank in ranks.items()}
    return [
        f"{path}: rank {before} became {now}, "
        + ("padded; it acts as before" if now > before else "cut to its largest singular values")
        for before, now in sorted(changed)
        if before != now
    ]


def check_file(path: str | PathLike[str], modules: Modules, foreign_keys: list[str]) -> None:
    """Raises ModelError unless a file holds a network that can be read, and nothing else."""
    if not foreign_keys and modules:
        return
    kind = other_network_type(foreign_keys)
    found = f"found {_some(foreign_keys)}" if foreign_keys else "it has no tensors"
    if kind is not None:
        code, message = "lora.other_type", f"is a {kind} file, which cannot be read here"
    elif not modules:
        code, message = "lora.not_a_lora", f"is not a LoRA for this model: {found}"
    else:
        code, message = "lora.foreign_keys", f"has tensors that are no part of a LoRA: {found}"
    raise ModelError(Problem(code, message, file=str(path)))


def _wrong_modules(path: str | PathLike[str], modules: Modules, expected: list[str]) -> list[Problem]:
    unmatched = [name for name in modules if name not in expected]
    missing = [name for name in expected if name not in modules]
    halves = [name for name, tensors in modules.items() if (UP in tensors) != (DOWN in tensors)]
    matched = f"{len(modules) - len(unmatched)} of its {len(modules)} modules match"
    problems = []
    if unmatched:
        message = f"has {len(unmatched)} modules that the network lacks ({matched}): {_some(unmatched)}"
        remedy = "train the text encoder too, or check network_kwargs, conv and transformer_only"
        problems.append(Problem("lora.unmatched", message, file=str(path), remedy=remedy))
    if missing:
        message = f"lacks {len(missing)} of the network's {len(expected)} modules: {_some(missing)}"
        remedy = "choose network_kwargs, conv and train_text_encoder as when it was trained"
        problems.append(Problem("lora.missing", message, file=str(path), remedy=remedy))
    if halves:
        message = f"has modules with only one of up and down: {_some(halves)}"
        problems.append(Problem("lora.incomplete", message, file=str(path)))
    return problems


def _cast(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    result = tensor.to(dtype).contiguous()
    if torch.isfinite(result).all():
        return result
    diverged = not torch.isfinite(tensor).all()
    name = str(dtype).removeprefix("torch.")
    message = f"{key} cannot be saved as {name}: its largest value is {tensor.abs().max().item():g}"
    remedy = "the weights have diverged: lower the learning rate" if diverged else "save as bf16 or float32"
    raise RunError(Problem("lora.not_finite", message, key="save.dtype", remedy=remedy))


def _alphas_in_header(metadata: Mapping[str, str]) -> Callable[[str], float | None]:
    """peft's module name -> alpha, from diffusers' `lora_adapter_metadata`; None without it."""
    try:
        table: dict[str, Any] = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        table = {}

    def alpha_of(name: str) -> float | None:
        component, _, path = name.partition(".")
        for pattern, alpha in (table.get(f"{component}.alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", path):  # peft's own rule
                return float(alpha)
        alpha = table.get(f"{component}.lora_alpha")
        return None if alpha is None else float(alpha)

    return alpha_of


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_IN_MESSAGE} more" if len(names) > NAMES_IN_MESSAGE else ""
    return ", ".join(names[:NAMES_IN_MESSAGE]) + more
