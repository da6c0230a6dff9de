"""Names of LoRA tensors in files: kohya's, which every tool reads for SD 1.x, and peft's. Torch-free.

kohya: `lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`, `.lora_up.weight`, `.alpha` (0-dim).
peft:  `unet.mid_block.attentions.0.proj_in.lora_A.weight` (= down), `.lora_B.weight` (= up), no alpha.
In both, the change of a weight is up @ down * alpha / rank; a missing alpha means alpha = rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

KOHYA_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}

DOWN, UP, ALPHA = "down", "up", "alpha"
_KOHYA_PARTS = {"lora_down.weight": DOWN, "lora_up.weight": UP, "alpha": ALPHA}
_DOTTED_KEY = re.compile(
    r"^(?:base_model\.model\.)?(?P<path>.+?)\."
    r"(?:(?P<down>lora_A|lora_down|lora\.down)|(?P<up>lora_B|lora_up|lora\.up))(?:\.default)?\.weight$"
)
_DOTTED_ALPHA = re.compile(r"^(?:base_model\.model\.)?(?P<path>.+)\.alpha$")

# Ends of keys that belong to other network types, with the name to use in a message.
_OTHER_TYPES = {
    ".hada_w1_a": "LoHa",
    ".lokr_w1": "LoKr",
    ".lokr_w1_a": "LoKr",
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".lora_mid.weight": "LoCon with Tucker decomposition",
    ".diff": "full difference",
}


def canonical_path(component: str, path: str) -> str:
    """A module's path as files spell it.

    transformers 5 dropped `text_model.` from the module names of CLIPTextModel, but files keep it:
    other tools match the literal `lora_te_text_model_encoder_layers_...` only.
    """
    if component.startswith("text_encoder") and path.startswith("encoder."):
        return f"text_model.{path}"
    return path


def kohya_name(component: str, path: str) -> str:
    """kohya's name of a module, without the tensor's part."""
    return f"{KOHYA_PREFIXES[component]}_{canonical_path(component, path)}".replace(".", "_")


def peft_name(component: str, path: str) -> str:
    """peft's name of a module, without the tensor's part."""
    return f"{component}.{canonical_path(component, path)}"


def split_key(key: str) -> tuple[str, str] | None:
    """A key in either format -> (kohya's module name, "down" | "up" | "alpha"), or None if it is neither.

    The dotted formats are peft's and the older ones of diffusers (`.lora.down.weight`).
    """
    head, _, tail = key.partition(".")
    for component, prefix in KOHYA_PREFIXES.items():
        if head.startswith(f"{prefix}_") and tail in _KOHYA_PARTS:
            flat = head.removeprefix(f"{prefix}_")
            if component.startswith("text_encoder") and flat.startswith("encoder_"):
                flat = f"text_model_{flat}"  # written from the module names of transformers 5
            return f"{prefix}_{flat}", _KOHYA_PARTS[tail]
    match = _DOTTED_KEY.match(key)
    part = ALPHA if match is None else DOWN if match["down"] else UP
    match = match or _DOTTED_ALPHA.match(key)
    if match is None:
        return None
    component, _, path = match["path"].partition(".")
    if component not in KOHYA_PREFIXES or not path:
        return None
    return kohya_name(component, path), part


@dataclass(slots=True)
class LoraTensors(Generic[T]):
    """What a file says about one module: down (rank, in, ...), up (out, rank, ...), alpha () or None."""

    down: T | None = None
    up: T | None = None
    alpha: T | None = None


@dataclass(slots=True)
class LoraFile(Generic[T]):
    """The modules of a file by kohya's name, and the keys that belong to no LoRA module."""

    modules: dict[str, LoraTensors[T]] = field(default_factory=dict)
    foreign_keys: list[str] = field(default_factory=list)


def group_modules(tensors: Mapping[str, T]) -> LoraFile[T]:
    """Sort the tensors of a file in either format by module."""
    result: LoraFile[T] = LoraFile()
    for key, tensor in tensors.items():
        split = split_key(key)
        if split is None:
            result.foreign_keys.append(key)
            continue
        name, part = split
        setattr(result.modules.setdefault(name, LoraTensors()), part, tensor)
    return result


def other_network_type(keys: Iterable[str]) -> str | None:
    """The kind of network other than LoRA that these keys belong to, or None."""
    for key in keys:
        for end, kind in _OTHER_TYPES.items():
            if key.endswith(end):
                return kind
    return None


def to_kohya(state: Mapping[str, T], alpha: T) -> dict[str, T]:
    """Tensors with peft's keys -> kohya's keys, with `alpha` for each module, sorted by key.

    Raises ValueError on a key that is not peft's.
    """
    modules: dict[str, T] = {}
    for key, tensor in state.items():
        split = split_key(key)
        if split is None or split[1] == ALPHA:
            raise ValueError(f"{key!r} is not the name of a LoRA tensor")
        name, part = split
        modules[f"{name}.lora_{part}.weight"] = tensor
        modules[f"{name}.alpha"] = alpha
    return dict(sorted(modules.items()))


def to_peft(modules: Mapping[str, LoraTensors[T]], peft_names: Mapping[str, str]) -> dict[str, T]:
    """Grouped tensors -> peft's keys. `peft_names` maps kohya's name of a module to peft's.

    Only the model knows that table: in kohya's name a "_" may stand for "." or for itself. Alphas have no
    place in this format: fold them into `up` before. Raises KeyError on an unknown module.
    """
    state: dict[str, T] = {}
    for name, tensors in modules.items():
        if tensors.down is not None:
            state[f"{peft_names[name]}.lora_A.weight"] = tensors.down
        if tensors.up is not None:
            state[f"{peft_names[name]}.lora_B.weight"] = tensors.up
    return state
