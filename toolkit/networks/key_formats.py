"""Names of network tensors in files. Torch-free.

kohya and lycoris: `lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`, `.lora_up.weight`, `.alpha`
    (0-dim); likewise `.hada_w1_a` (LoHa), `.lokr_w1` (LoKr), `.dora_scale` (DoRA).
peft: `unet.mid_block.attentions.0.proj_in.lora_A.weight` (= down), `.lora_B.weight` (= up), no alpha.

Here a module has one name, kohya's of Stable Diffusion 1.x, and its tensors are the parts that kohya and
lycoris name. A missing alpha means alpha = rank. Files of Stable Diffusion XL name the UNet's modules as the
original does: toolkit.networks.sgm_names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from toolkit.networks.sgm_names import from_sgm, to_sgm

T = TypeVar("T")

DOWN, UP, ALPHA, DORA = "lora_down.weight", "lora_up.weight", "alpha", "dora_scale"
LOHA_PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOKR_PARTS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
PARTS = (DOWN, UP, ALPHA, DORA, *LOHA_PARTS, *LOKR_PARTS)

# The one name of a module: this prefix and its path with "_" for ".".
PREFIXES = {
    "unet": "lora_unet",
    "transformer": "lora_transformer",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
}
# Other prefixes in files; `lycoris` leaves out of which denoiser.
_ALIASES = {"lora_te1": "lora_te"}
_ANY_DENOISER = "lycoris"

_DOTTED_KEY = re.compile(
    r"^(?:base_model\.model\.)?(?P<path>.+?)\."
    r"(?:(?P<down>lora_A|lora_down|lora\.down)|(?P<up>lora_B|lora_up|lora\.up))(?:\.default)?\.weight$"
)
_DOTTED_REST = re.compile(
    r"^(?:base_model\.model\.)?(?P<path>.+)\.(?P<part>alpha|dora_scale|lora_magnitude_vector(?:\.default)?"
    r"(?:\.weight)?|(?:hada|lokr)_\w+)$"
)

# Parts that no network here has, with the name to use in a message.
_OTHER_TYPES = {
    ".lora_mid.weight": "LoCon with Tucker decomposition",
    ".hada_t1": "LoHa with Tucker decomposition",
    ".lokr_t2": "LoKr with Tucker decomposition",
    ".diff": "full difference",
    ".oft_blocks": "OFT",
    ".oft_diag": "OFT",
}


@dataclass(frozen=True, slots=True)
class KeyStyle:
    """How the files of an architecture name their modules.

    prefixes: component -> what stands for it. dotted: LoRA in peft's keys, without alpha; others in lycoris'.
    sgm: the UNet's modules have the names of the original UNet.
    """

    prefixes: Mapping[str, str]
    dotted: bool = False
    sgm: bool = False


STYLES = {
    "sd": KeyStyle(PREFIXES),
    "sdxl": KeyStyle(PREFIXES | {"text_encoder": "lora_te1"}, sgm=True),
    "peft": KeyStyle(PREFIXES | {"transformer": "lycoris", "text_encoder": "lora_te1"}, dotted=True),
}

# UNets are read everywhere in kohya's keys; transformers in peft's (diffusers drops kohya's silently).
_STYLE_OF = {"sd15": "sd", "sd2": "sd", "sdxl": "sdxl", "ssd": "sdxl", "vega": "sdxl"}


def style_of(architecture: str) -> KeyStyle:
    """How network files of an architecture name their modules."""
    return STYLES[_STYLE_OF.get(architecture, "peft")]


def canonical_path(component: str, path: str) -> str:
    """A module's path as files spell it.

    transformers 5 dropped `text_model.` from the module names of CLIPTextModel, but files keep it:
    other tools match the literal `lora_te_text_model_encoder_layers_...` only.
    """
    if component.startswith("text_encoder") and path.startswith("encoder.layers."):
        return f"text_model.{path}"
    return path


def kohya_name(component: str, path: str) -> str:
    """The one name of a module: kohya's of Stable Diffusion 1.x, without the tensor's part."""
    return f"{PREFIXES[component]}_{canonical_path(component, path)}".replace(".", "_")


def peft_name(component: str, path: str) -> str:
    """peft's name of a module, without the tensor's part."""
    return f"{component}.{canonical_path(component, path)}"


def split_key(key: str, denoiser: str = "unet") -> tuple[str, str] | None:
    """A key in any format -> (the module's one name, one of PARTS), or None if it is neither.

    denoiser: the component meant where a file leaves it out. The dotted formats are peft's, the older ones of
    diffusers (`.lora.down.weight`) and ComfyUI's (`diffusion_model.`).
    """
    head, _, tail = key.partition(".")
    flat = _flat_name(head, denoiser)
    if flat is not None and tail in PARTS:
        return flat, tail
    match = _DOTTED_KEY.match(key)
    if match is not None:
        part = DOWN if match["down"] else UP
    else:
        match = _DOTTED_REST.match(key)
        if match is None:
            return None
        part = DORA if match["part"].startswith("lora_magnitude") else match["part"]
    component, _, path = match["path"].partition(".")
    component = denoiser if component == "diffusion_model" else component
    if component not in PREFIXES or not path or part not in PARTS:
        return None
    return kohya_name(component, path), part


def _flat_name(head: str, denoiser: str) -> str | None:
    """The one name of a module from the head of a flat key, or None if it is no such."""
    known = sorted([*PREFIXES.values(), *_ALIASES, _ANY_DENOISER], key=len, reverse=True)
    prefix = next((each for each in known if head.startswith(f"{each}_")), None)
    if prefix is None:
        return None
    rest = head.removeprefix(f"{prefix}_")
    prefix = PREFIXES[denoiser] if prefix == _ANY_DENOISER else _ALIASES.get(prefix, prefix)
    if prefix.startswith("lora_te") and rest.startswith("encoder_layers_"):
        rest = f"text_model_{rest}"  # written from the module names of transformers 5
    return f"{prefix}_{from_sgm(rest)}"


@dataclass(slots=True)
class NetworkFile(Generic[T]):
    """The modules of a file by their one name, each part -> tensor; and the keys that belong to no module."""

    modules: dict[str, dict[str, T]] = field(default_factory=dict)
    foreign_keys: list[str] = field(default_factory=list)


def group_modules(tensors: Mapping[str, T], denoiser: str = "unet") -> NetworkFile[T]:
    """Sort the tensors of a file in any format by module."""
    result: NetworkFile[T] = NetworkFile()
    for key, tensor in tensors.items():
        split = split_key(key, denoiser)
        if split is None:
            result.foreign_keys.append(key)
            continue
        name, part = split
        result.modules.setdefault(name, {})[part] = tensor
    return result


def file_kind(modules: Mapping[str, Mapping[str, T]]) -> str:
    """Which type of network the parts of a file make: lora, dora, loha or lokr."""
    parts = {part for tensors in modules.values() for part in tensors}
    if parts & set(LOHA_PARTS):
        return "loha"
    if parts & set(LOKR_PARTS):
        return "lokr"
    return "dora" if DORA in parts else "lora"


def other_network_type(keys: Iterable[str]) -> str | None:
    """The kind of network that cannot be read here to which one of these keys belongs, or None."""
    for key in keys:
        for end, kind in _OTHER_TYPES.items():
            if key.endswith(end):
                return kind
    return None


def file_key(component: str, path: str, part: str, style: KeyStyle) -> str:
    """The key of one tensor of a module in a file of this style."""
    if style.dotted and part in (DOWN, UP, DORA):
        # The length of rows with `.weight`: without it diffusers leaves it out of text encoders.
        ends = {DOWN: "lora_A.weight", UP: "lora_B.weight", DORA: "lora_magnitude_vector.weight"}
        return f"{peft_name(component, path)}.{ends[part]}"
    flat = canonical_path(component, path).replace(".", "_")
    if style.sgm and component == "unet":
        flat = to_sgm(flat)
    return f"{style.prefixes[component]}_{flat}.{part}"
