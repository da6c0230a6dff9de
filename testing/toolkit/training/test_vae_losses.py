import pytest
import torch

from testing.tiny_models import tiny_pipeline
from toolkit.data.items import Batch
from toolkit.training.vae_losses import VaeLossWeights, vae_losses


def test_each_term_equals_its_definition():
    vae = tiny_pipeline().vae.eval()
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = Batch(items=(), captions=("",) * 3, weights=torch.ones(3), pixels=pixels)

    def loss(**weights: float) -> torch.Tensor:
        torch.manual_seed(5)
        return vae_losses(vae, batch, VaeLossWeights(**({"mse": 0, "kl": 0} | weights))).per_item

    with torch.no_grad():
        torch.manual_seed(5)
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        for item in range(3):
            difference = decoded[item] - pixels[item]
            assert loss(mse=1)[item].item() == pytest.approx(difference.pow(2).mean().item(), rel=1e-5)
            assert loss(mae=1)[item].item() == pytest.approx(difference.abs().mean().item(), rel=1e-5)
            pooled = torch.nn.functional.adaptive_avg_pool2d(difference, 4).pow(2).mean().item()
            assert loss(pooled_mse=1)[item].item() == pytest.approx(pooled, rel=1e-4)
            # diffusers sums the divergence over the latent's elements, we take the mean.
            kl = posterior.kl()[item].item() / posterior.mean[item].numel()
            assert loss(kl=1)[item].item() == pytest.approx(kl, rel=1e-4)
