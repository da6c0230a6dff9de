"""First weights for a model that is trained from nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Generator, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def _reset(module: nn.Module, generator: Generator) -> None:
    """Torch's own defaults for one layer, drawn from the generator."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


@torch.no_grad()
def init_autoencoder(vae: AutoencoderKL, generator: Generator) -> None:
    """Set every weight so that each block begins as the identity: residual branches add nothing, and
    up- and downsampling only move pixels.

    A small autoencoder then passes colours through from its first step. From torch's own defaults it learned
    them late and swapped greens with greys (32 px, 240 s: 25.5 dB against 26.8 dB with this start).
    """
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D

    for module in vae.modules():
        _reset(module, generator)
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
        elif isinstance(module, Downsample2D | Upsample2D):
            nn.init.dirac_(module.conv.weight)
