"""Stable Diffusion 1.x to disk: diffusers' folder layout, or one file in the original (LDM) key layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from toolkit.models.shared.components import cast_copy, quiet_loading
from toolkit.runs import atomic

if TYPE_CHECKING:
    from toolkit.models.sd15.model import SD15

_READABLE = 0o644  # the libraries write weights for the owner's eyes only


def save_folder(model: SD15, folder: Path, *, dtype: torch.dtype) -> None:
    """Write a diffusers folder with weights cast to dtype, in place of an old one; the model stays as is.

    Raises RunError if the disk refuses.
    """
    with atomic.reporting(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    pipeline = model.pipeline()
    for name in ("unet", "vae", "text_encoder"):
        setattr(pipeline, name, cast_copy(getattr(model, name), dtype))
    with atomic.writing_folder(folder) as part, quiet_loading():
        pipeline.save_pretrained(part, safe_serialization=True)
        for file in part.rglob("*"):
            if file.is_file():
                file.chmod(_READABLE)


def save_single_file(
    model: SD15, path: Path, *, dtype: torch.dtype, metadata: dict[str, str] | None = None
) -> None:
    """Write UNet, autoencoder and text encoder as one .safetensors file in the original key layout.

    Raises RunError if the disk refuses.
    """
    with atomic.reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().to("cpu", dtype).contiguous()
        for name, value in ldm_state_dict(model.unet, model.vae, model.text_encoder).items()
    }
    size = sum(value.nbytes for value in weights.values())
    with atomic.writing(path, size=size) as part:
        save_file(weights, part, metadata={"format": "pt", **(metadata or {})})


def ldm_state_dict(unet: nn.Module, vae: nn.Module, text_encoder: nn.Module) -> dict[str, Tensor]:
    """The weights under the keys of the original Stable Diffusion 1.x checkpoints."""
    weights = {f"model.diffusion_model.{key}": value for key, value in _unet_weights(unet).items()}
    weights |= {f"first_stage_model.{key}": value for key, value in _vae_weights(vae).items()}
    for key, value in text_encoder.state_dict().items():
        # transformers 5 flattened CLIPTextModel; the original keeps the inner module's name.
        inner = key.removeprefix("text_model.")
        weights[f"cond_stage_model.transformer.text_model.{inner}"] = value
    return weights


def _rename(key: str, rules: list[tuple[str, str]]) -> str:
    """A key after all rules (pattern, replacement) were applied in turn."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


_UNET_ENDS = [
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
]
_UNET_RESNET = [
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]
_BLOCK = re.compile(r"^(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)$")


def _unet_weights(unet: nn.Module) -> dict[str, Tensor]:
    """The UNet under its original keys: one flat list of input blocks, one of output blocks."""
    state = unet.state_dict()
    per_block = unet.config.layers_per_block + 1  # type: ignore[union-attr,operator]
    with_attention = {key.split(".attentions.")[0] for key in state if ".attentions." in key}
    renamed = {}
    for key, value in state.items():
        name = key
        if ".resnets." in key:
            name = _rename(name, _UNET_RESNET)
        match = _BLOCK.match(name)
        if match is None:
            renamed[_rename(name, _UNET_ENDS)] = value
            continue
        side, block, kind, layer, rest = match.groups()
        index = int(block) * per_block
        if kind == "downsamplers":
            rest = rest.replace("conv.", "op.", 1)
            name = f"input_blocks.{index + per_block}.0.{rest}"
        elif kind == "upsamplers":
            place = 2 if f"up_blocks.{block}" in with_attention else 1
            name = f"output_blocks.{index + per_block - 1}.{place}.{rest}"
        else:
            # The first input block is conv_in.
            number = index + int(layer) + (1 if side == "down" else 0)
            place = 0 if kind == "resnets" else 1
            name = f"{'input' if side == 'down' else 'output'}_blocks.{number}.{place}.{rest}"
        renamed[name] = value
    return renamed


_VAE_RULES = [
    (r"\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r".down.\1.block.\2."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.resnets\.(\d+)\.", r".up.\1.block.\2."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_(q|k|v)\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
]


def _vae_weights(vae: nn.Module) -> dict[str, Tensor]:
    """The autoencoder under its original keys, which count the decoder's blocks from the finest."""
    last = len(vae.config.block_out_channels) - 1  # type: ignore[union-attr,arg-type]
    renamed = {}
    for key, value in vae.state_dict().items():
        name = re.sub(r"(\.up_blocks\.)(\d+)", lambda match: f"{match[1]}{last - int(match[2])}", key)
        if ".attentions." in key and key.endswith(".weight") and value.ndim == 2:
            value = value[:, :, None, None]  # the original writes these linear layers as 1 x 1 convolutions
        renamed[_rename(name, _VAE_RULES)] = value
    return renamed
