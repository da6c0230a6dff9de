"""Names of Stable Diffusion XL's UNet modules in kohya's files: those of the original (SGM) UNet. Torch-free.

kohya's scripts train that UNet and read no other names; diffusers, ComfyUI and A1111 read both kinds. The
original counts its blocks in two flat lists, three to a block of diffusers: two layers and the resampling.
"""

from __future__ import annotations

import re

_PER_BLOCK = 3
_RESNET = {
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
_RESNET_BACK = {theirs: ours for ours, theirs in _RESNET.items()}
_MID = {"resnets_0": 0, "attentions_0": 1, "resnets_1": 2}
_MID_BACK = {number: name for name, number in _MID.items()}
_OURS = re.compile(r"(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_(.+)")
_OUR_MID = re.compile(r"mid_block_((?:resnets|attentions)_\d+)_(.+)")
_THEIRS = re.compile(r"(input|output)_blocks_(\d+)_(\d+)_(.+)")
_THEIR_MID = re.compile(r"middle_block_(\d+)_(.+)")


def to_sgm(path: str) -> str:
    """A module's path in diffusers' UNet, "_" for ".", as the original's; others stay as they are.

    >>> to_sgm("down_blocks_1_attentions_0_proj_in")
    'input_blocks_4_1_proj_in'
    """
    mid = _OUR_MID.fullmatch(path)
    if mid is not None and mid[1] in _MID:
        return f"middle_block_{_MID[mid[1]]}_{_RESNET.get(mid[2], mid[2])}"
    match = _OURS.fullmatch(path)
    if match is None:
        return path
    side, block, kind, layer, rest = match.groups()
    first = int(block) * _PER_BLOCK
    if kind == "downsamplers":
        return f"input_blocks_{first + _PER_BLOCK}_0_{rest.replace('conv', 'op', 1)}"
    if kind == "upsamplers":
        return f"output_blocks_{first + _PER_BLOCK - 1}_2_{rest}"
    # The first input block is conv_in.
    number = first + int(layer) + (side == "down")
    place, rest = (0, _RESNET.get(rest, rest)) if kind == "resnets" else (1, rest)
    return f"{'input' if side == 'down' else 'output'}_blocks_{number}_{place}_{rest}"


def from_sgm(path: str) -> str:
    """The inverse of to_sgm; a path of diffusers' UNet stays as it is.

    >>> from_sgm("output_blocks_2_2_conv")
    'up_blocks_0_upsamplers_0_conv'
    """
    mid = _THEIR_MID.fullmatch(path)
    if mid is not None and int(mid[1]) in _MID_BACK:
        return f"mid_block_{_MID_BACK[int(mid[1])]}_{_RESNET_BACK.get(mid[2], mid[2])}"
    match = _THEIRS.fullmatch(path)
    if match is None:
        return path
    side, number, place, rest = match[1], int(match[2]), int(match[3]), match[4]
    block, layer = divmod(number - (side == "input"), _PER_BLOCK)
    ours = f"{'down' if side == 'input' else 'up'}_blocks_{block}"
    if side == "input" and rest == "op":
        return f"{ours}_downsamplers_0_conv"
    if side == "output" and place == 2:
        return f"{ours}_upsamplers_0_{rest}"
    if place == 1:
        return f"{ours}_attentions_{layer}_{rest}"
    return f"{ours}_resnets_{layer}_{_RESNET_BACK.get(rest, rest)}"
