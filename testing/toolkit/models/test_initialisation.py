"""An autoencoder before training: the same for the same generator, and passing pictures straight through."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D

from toolkit.models.shared.components import component_hash
from toolkit.models.shared.initialisation import init_autoencoder


def autoencoder(seed: int) -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    init_autoencoder(vae, torch.Generator().manual_seed(seed))
    return vae.eval()


def test_weights_depend_on_the_generator_alone():
    torch.manual_seed(0)
    first = component_hash(autoencoder(1))
    torch.manual_seed(1)
    assert component_hash(autoencoder(1)) == first
    assert component_hash(autoencoder(2)) != first


def test_every_block_begins_as_the_identity():
    vae = autoencoder(1)
    features = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    kinds = set()
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D) and module.conv_shortcut is None and module.in_channels == 16:
            torch.testing.assert_close(module(features, None), features)
        elif isinstance(module, Attention):
            torch.testing.assert_close(module(features), features)
        elif isinstance(module, Upsample2D) and module.channels == 16:
            enlarged = features.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            torch.testing.assert_close(module(features), enlarged)
        elif isinstance(module, Downsample2D):
            small = features[:, : module.channels]
            torch.testing.assert_close(module(small), torch.nn.functional.avg_pool2d(small, 2))
        else:
            continue
        kinds.add(type(module).__name__)
    assert kinds == {"ResnetBlock2D", "Attention", "Upsample2D", "Downsample2D"}


def test_the_posterior_begins_narrow():
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = autoencoder(1).encode(pixels).latent_dist
    torch.testing.assert_close(posterior.std, torch.full_like(posterior.std, 0.0820850), rtol=1e-4, atol=0)
