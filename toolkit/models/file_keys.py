"""What a model in one file is, by the names of its tensors, and what else it needs. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

# The tokenizer that Stable Diffusion was trained with; a single file does not hold it.
CLIP_REPO = "openai/clip-vit-large-patch14"
CLIP_TOKENIZER_FILES = ("tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json")
# Before every key of files that hold a whole model.
WHOLE_MODEL = "model.diffusion_model."
# Of an architecture whose files are read by their header.
NO_SAFETENSORS = ("is no .safetensors file", "FLUX.1 is published as .safetensors")
_LORA = ("holds a LoRA, not a whole model", "name the base model it was trained on")
# How quantized files end the names of their scales and tables.
_QUANTIZED = (".scale_weight", ".weight_scale", ".absmax", ".quant_map", "scaled_fp8", ".comfy_quant")

Wrong = tuple[str, str | None]  # (what is wrong with a file, what to do)


@dataclass(frozen=True, slots=True)
class FileLayout:
    """How files of an architecture are told from others.

    others: beginning of a key that another architecture's files have -> what such a file holds, and what to
    do. own: beginnings of keys of which a file has one; lacking: what a file without holds not. tokenizers:
    components that come from beside the file or from the hub. alone: a file holds the denoiser only, and is
    .safetensors that is not quantized by other programs.
    """

    others: Mapping[str, Wrong] = field(hash=False)
    own: tuple[str, ...]
    lacking: str
    tokenizers: tuple[str, ...] = ()
    alone: bool = False

    def wrong(self, keys: Collection[str]) -> Wrong | None:
        """Why a file with these keys is not of this architecture, and what to do; None if it may be."""
        for beginning, told in self.others.items():
            if any(key.startswith(beginning) for key in keys):
                return told
        if any("lora_" in key for key in keys):
            return _LORA
        quantized = sorted(key for key in keys if key.endswith(_QUANTIZED)) if self.alone else []
        if quantized:
            remedy = "name the file in bf16, or one in plain fp8"
            return f"is quantized ({quantized[0]}), which cannot be read", remedy
        if not any(key.startswith(self.own) for key in keys):
            return self.lacking, None
        return None


_SD15_MARK = f"{WHOLE_MODEL}input_blocks.0.0.weight"
_SDXL_MARK = f"{WHOLE_MODEL}label_emb.0.0.weight"

SD15_FILE = FileLayout(
    others={
        "conditioner.embedders.1.": ("holds Stable Diffusion XL, not 1.x", "set model.arch: sdxl"),
        "cond_stage_model.model.": ("holds Stable Diffusion 2.x, not 1.x", "set model.arch: sd2"),
    },
    own=(_SD15_MARK,),
    lacking=f"holds no Stable Diffusion 1.x model (no {_SD15_MARK})",
    tokenizers=("tokenizer",),
)
SDXL_FILE = FileLayout(
    others={
        "conditioner.embedders.0.model.": (
            "holds the refiner of Stable Diffusion XL, which has no CLIP-L",
            "name the base model",
        ),
        "cond_stage_model.transformer.": ("holds Stable Diffusion 1.x, not XL", "set model.arch: sd15"),
        "cond_stage_model.model.": ("holds Stable Diffusion 2.x, not XL", "set model.arch: sd2"),
    },
    own=(_SDXL_MARK,),
    lacking=f"holds no Stable Diffusion XL model (no {_SDXL_MARK})",
    tokenizers=("tokenizer", "tokenizer_2"),
)
_FLUX_BLOCKS = ("double_blocks.0.", "transformer_blocks.0.")
FLUX_FILE = FileLayout(
    others={
        f"{WHOLE_MODEL}input_blocks.": (
            "holds a Stable Diffusion with a UNet",
            "set model.arch: sd15 or sdxl",
        ),
        f"{WHOLE_MODEL}joint_blocks.": ("holds Stable Diffusion 3", "set model.arch: sd3"),
    },
    own=(*_FLUX_BLOCKS, *(f"{WHOLE_MODEL}{block}" for block in _FLUX_BLOCKS)),
    lacking="holds no FLUX.1 transformer (no double_blocks.0 and no transformer_blocks.0)",
    alone=True,
)


def without_rest(*, extras: str | None, vae: str | None, text: str | None) -> Wrong | None:
    """What a file of the denoiser alone needs, if it is not named: where everything beside it comes from."""
    named = {
        "an autoencoder": ("model.vae_path", vae),
        "text encoders": ("model.te_name_or_path", text),
    }
    missing = {what: key for what, (key, given) in named.items() if given is None}
    if extras is not None or not missing:
        return None
    alone = " and ".join(f"{what} with {key}" for what, key in missing.items())
    remedy = f"name a FLUX.1 folder or hub id with model.extras_name_or_path, or {alone}"
    return "holds the transformer alone", remedy
