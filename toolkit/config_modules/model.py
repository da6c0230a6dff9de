"""The `model` section: where the base model comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from toolkit.config_modules.base import Section, Text, is_default, one_of
from toolkit.config_modules.loop import Dtype
from toolkit.config_modules.names import ARCH_FLAGS, ARCHES, ARCHES_NOT_YET
from toolkit.models.catalogue import ARCHITECTURES, ArchitectureEntry
from toolkit.models.geometry import infer_architecture

_NO_QUANT = "only counts with quantize"
_NO_OFFLOAD = "only counts with layer_offloading"
_NO_COMPILE = "only counts with compile"
_NO_REFINER = "the supported models have no refiner"


class ModelConfig(Section):
    """The base model."""

    NOT_YET: ClassVar = {
        **{flag: False for flag, arch in ARCH_FLAGS.items() if arch in ARCHES_NOT_YET},
        "quantize": False, "quantize_te": False, "low_vram": False,
        "layer_offloading": False, "auto_memory": False,
        "assistant_lora_path": None, "inference_lora_path": None, "lora_path": None,
        "accuracy_recovery_adapter": None, "unet_path": None,
        "refiner_name_or_path": None,
        "vae_device": None, "vae_dtype": None, "te_device": None, "te_dtype": None, "text_encoder_bits": 16,
        "attn_masking": False, "split_model_over_gpus": False, "model_kwargs": None,
        "compile": False, "use_text_encoder_1": True, "use_text_encoder_2": True,
        "latent_space_version": None, "experimental_xl": False, "block_compile": False,
    }  # fmt: skip
    IDLE: ClassVar = {
        "qtype": ("qfloat8", _NO_QUANT), "qtype_te": ("qfloat8", _NO_QUANT),
        "ignore_if_contains": (None, _NO_QUANT), "only_if_contains": (None, _NO_QUANT),
        "quantize_kwargs": ({}, _NO_QUANT),
        "layer_offloading_transformer_percent": (1.0, _NO_OFFLOAD),
        "layer_offloading_text_encoder_percent": (1.0, _NO_OFFLOAD),
        "split_model_other_module_param_count_scale": (0.3, "only counts with split_model_over_gpus"),
        "refiner_start_at": (0.5, _NO_REFINER),
        "compile_mode": (None, _NO_COMPILE), "compile_fullgraph": (None, _NO_COMPILE),
        "compile_dynamic": (None, _NO_COMPILE), "cache_size_limit": (None, _NO_COMPILE),
    }  # fmt: skip

    name_or_path: Text = Field(
        min_length=1,
        description="Hub id, diffusers folder, .safetensors file, or an embedded model such as tiny-sd.",
    )
    arch: Annotated[str, *one_of("architecture", ARCHES, ARCHES_NOT_YET)] = Field(
        "sd15",
        description="Architecture of the model; `arch:tag` means arch "
        "(left out: what a local folder or file holds, else sd15).",
    )
    is_xl: bool = Field(False, description="The model is a Stable Diffusion XL; the same as arch: sdxl.")
    is_ssd: bool = Field(False, description="The model is a Segmind SSD-1B; the same as arch: ssd.")
    is_vega: bool = Field(False, description="The model is a Segmind Vega; the same as arch: vega.")
    is_flux: bool = Field(False, description="The model is a FLUX.1; the same as arch: flux.")
    is_v_pred: bool = Field(
        False, description="The model predicts velocity; the same as prediction_type: v_prediction."
    )
    prediction_type: Literal["epsilon", "v_prediction", "flow"] | None = Field(
        None,
        description="What the model predicts: epsilon, v_prediction or flow (null: as its scheduler says).",
    )
    dtype: Dtype | None = Field(
        None, description="Precision of frozen weights (null: that of train, or a generation's usual one)."
    )
    vae_path: Text | None = Field(
        None, description="Another autoencoder: hub id, folder or file (null: the model's own)."
    )
    te_name_or_path: Text | None = Field(
        None,
        description="Tokenizer and text encoder for a single file: folder or hub id (null: its own).",
    )
    extras_name_or_path: Text | None = Field(
        None,
        description="Hub id or folder that everything beside the transformer comes from (null: the model's "
        "own); FLUX.1 only.",
    )
    use_flux_cfg: bool = Field(
        False,
        description="Draw with classifier-free guidance in two passes, for FLUX.1 models without "
        "distillation; their guidance embedding is left out.",
    )
    from_config: bool = Field(
        False,
        description="Build with random weights from the folder's config files, seeded by training_seed.",
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """`arch:tag` is arch; the legacy flags set arch and prediction_type."""
        data = _with_arch(data)
        if data.get("is_v_pred") and data.get("prediction_type", "v_prediction") != "v_prediction":
            raise PydanticCustomError("prediction", "is_v_pred and prediction_type differ")
        if data.get("is_v_pred"):
            data["prediction_type"] = "v_prediction"
        return data


def _with_arch(data: dict[str, Any]) -> dict[str, Any]:
    """The raw section with the architecture that it, a flag, or what it names says."""
    data = dict(data)
    if isinstance(data.get("arch"), str):
        data["arch"] = data["arch"].partition(":")[0]
    _apply_flags(data)
    if "arch" not in data and isinstance(data.get("name_or_path"), str):
        data["arch"] = infer_architecture(data["name_or_path"])
    return data


def _apply_flags(data: dict[str, Any]) -> None:
    """Let a flag such as is_xl say which arch it is."""
    for flag, arch in ARCH_FLAGS.items():
        if flag not in ModelConfig.model_fields or is_default(data.get(flag), False):
            continue
        said = ARCHES.get(str(data.get("arch", arch)).lower())
        if said != arch:
            raise PydanticCustomError("arch", "{flag} and arch differ", {"flag": flag})
        data["arch"] = arch


def architecture_of(data: Any) -> ArchitectureEntry | None:
    """The architecture that a raw `model` section means; None if it is none, or names an unknown one."""
    if not isinstance(data, Mapping):
        return None
    try:
        name = _with_arch({key: value for key, value in data.items() if value is not None}).get("arch")
    except PydanticCustomError:
        return None
    return ARCHITECTURES.get(ARCHES.get(str(name).lower(), ""))
