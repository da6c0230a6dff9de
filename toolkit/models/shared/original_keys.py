"""Key names of the original (LDM, SGM) Stable Diffusion checkpoints for the networks of diffusers."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn


def _rename(key: str, rules: list[tuple[str, str]]) -> str:
    """A key after all rules (pattern, replacement) were applied in turn."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


_UNET_ENDS = [
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
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


def original_unet(unet: nn.Module) -> dict[str, Tensor]:
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


def original_vae(vae: nn.Module) -> dict[str, Tensor]:
    """The autoencoder under its original keys, which count the decoder's blocks from the finest."""
    last = len(vae.config.block_out_channels) - 1  # type: ignore[union-attr,arg-type]
    renamed = {}
    for key, value in vae.state_dict().items():
        name = re.sub(r"(\.up_blocks\.)(\d+)", lambda match: f"{match[1]}{last - int(match[2])}", key)
        if ".attentions." in key and key.endswith(".weight") and value.ndim == 2:
            value = value[:, :, None, None]  # the original writes these linear layers as 1 x 1 convolutions
        renamed[_rename(name, _VAE_RULES)] = value
    return renamed


def original_clip(encoder: nn.Module) -> dict[str, Tensor]:
    """CLIP's text encoder under its original keys, which are those of transformers before version 5."""
    # transformers 5 flattened CLIPTextModel; the original keeps the inner module's name.
    return {
        f"text_model.{key.removeprefix('text_model.')}": value for key, value in encoder.state_dict().items()
    }


_OPEN_CLIP_RULES = [
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.(\d+)\.", r"transformer.resblocks.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]
_QUERY = re.compile(r"^(.+\.self_attn)\.q_proj\.(weight|bias)$")
# OpenCLIP's temperature. No picture depends on it, but strict readers look for it; training ended at its bound.
_LOGIT_SCALE = math.log(100)


def original_open_clip(encoder: nn.Module) -> dict[str, Tensor]:
    """OpenCLIP's text encoder with its projection under its original keys; q, k and v are one tensor there."""
    state = encoder.state_dict()
    renamed = {"logit_scale": torch.tensor(_LOGIT_SCALE)}
    for key, value in state.items():
        query = _QUERY.match(key)
        if query is not None:
            parts = [state[f"{query[1]}.{name}_proj.{query[2]}"] for name in "qkv"]
            block = _rename(f"{query[1].removesuffix('.self_attn')}.", _OPEN_CLIP_RULES)
            renamed[f"{block}attn.in_proj_{query[2]}"] = torch.cat(parts)
        elif key == "text_projection.weight":
            renamed["text_projection"] = value.T
        elif ".k_proj." not in key and ".v_proj." not in key:
            renamed[_rename(key, _OPEN_CLIP_RULES)] = value
    return renamed
