"""Key names of the original (LDM, SGM) Stable Diffusion checkpoints for diffusers' UNet and autoencoder."""

from __future__ import annotations

import re

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
