"""The loss of a batch, item by item, on a real tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from testing.tiny_models import build_tiny_sd15
from toolkit.data.items import Batch
from toolkit.diffusion.criteria import mae, mse
from toolkit.diffusion.diffusion_loss import ItemLosses, diffusion_loss
from toolkit.diffusion.loss_weighting import min_snr
from toolkit.models.sd15.loading import load
from toolkit.models.sd15.model import SD15

MSE = mse


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> SD15:
    return load(
        build_tiny_sd15(Path(tmp_path_factory.mktemp("loss")) / "sd15", prediction_type="v_prediction")
    )


@pytest.fixture
def batch(model: SD15) -> Batch:
    generator = torch.Generator().manual_seed(1)
    shape = (3, *model.latent_spec.shape(32, 32))
    captions = ("a red circle", "a cat", "")
    return Batch(
        items=(),
        captions=captions,
        weights=torch.tensor([1.0, 2.0, 0.5]),
        noise=torch.randn(shape, generator=generator),
        t=torch.tensor([0.1, 0.5, 0.9]),
        latents=torch.randn(shape, generator=generator),
        conditioning=model.encode_prompts(list(captions)),
    )


def test_per_item_is_the_mean_error_of_each_item(model, batch):
    losses = diffusion_loss(model, batch, criterion=MSE)
    noisy = model.objective.add_noise(batch.latents, batch.noise, batch.t)
    prediction = model.predict(noisy, batch.t, batch.conditioning)
    target = model.objective.target(batch.latents, batch.noise, batch.t)
    expected = F.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses.per_item, expected)
    assert losses.counts.tolist() == [4 * 8 * 8] * 3
    assert losses.sums.dtype == torch.float32


def test_mae_is_the_absolute_error(model, batch):
    losses = diffusion_loss(model, batch, criterion=mae)
    noisy = model.objective.add_noise(batch.latents, batch.noise, batch.t)
    prediction = model.predict(noisy, batch.t, batch.conditioning)
    target = model.objective.target(batch.latents, batch.noise, batch.t)
    torch.testing.assert_close(losses.per_item, (prediction - target).abs().mean(dim=(1, 2, 3)))


def test_an_item_does_not_depend_on_its_batch(model, batch):
    together = diffusion_loss(model, batch, criterion=MSE).per_item
    for index in range(3):
        part = slice(index, index + 1)
        alone = replace(
            batch,
            captions=batch.captions[part],
            weights=batch.weights[part],
            noise=batch.noise[part],
            t=batch.t[part],
            latents=batch.latents[part],
            conditioning=batch.conditioning[index],
        )
        torch.testing.assert_close(diffusion_loss(model, alone, criterion=MSE).per_item[0], together[index])


def test_weighting_multiplies_and_item_weights_do_not(model, batch):
    plain = diffusion_loss(model, batch, criterion=MSE)
    weighted = diffusion_loss(model, batch, criterion=MSE, weighting=min_snr(5.0))
    factors = min_snr(5.0)(model.objective, batch.t)
    torch.testing.assert_close(weighted.per_item, plain.per_item * factors)
    others = replace(batch, weights=torch.zeros(3))
    assert torch.equal(diffusion_loss(model, others, criterion=MSE).per_item, plain.per_item)


def test_a_mask_counts_only_what_it_covers(model, batch):
    mask = torch.zeros(3, 1, 8, 8)
    mask[0, :, :4] = 1.0
    mask[1] = 0.5
    plain = diffusion_loss(model, batch, criterion=MSE)
    masked = diffusion_loss(model, replace(batch, mask=mask), criterion=MSE)
    assert masked.counts.tolist() == [4 * 8 * 4, 4 * 8 * 8 / 2, 0]
    torch.testing.assert_close(masked.per_item[1], plain.per_item[1])
    assert masked.per_item[2] == 0

    elements: list[torch.Tensor] = []

    def keeping(prediction, target, objective, t):
        elements.append((prediction - target) ** 2)
        return elements[0]

    diffusion_loss(model, batch, criterion=keeping)
    torch.testing.assert_close(masked.per_item[0], elements[0][0, :, :4].mean())


def test_a_mask_can_be_averaged_over_all_of_the_item(model, batch):
    """As kohya's scripts do: half a picture has half the loss, a quarter of one a quarter."""
    mask = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    elements: list[torch.Tensor] = []

    def keeping(prediction, target, objective, t):
        elements.append((prediction - target) ** 2)
        return elements[0]

    masked = replace(batch, mask=mask)
    whole = diffusion_loss(model, masked, criterion=keeping, normalized=False)
    torch.testing.assert_close(whole.per_item, (elements[0] * mask).mean(dim=(1, 2, 3)))
    assert whole.counts.tolist() == [4 * 8 * 8] * 3
    weighted = diffusion_loss(model, masked, criterion=MSE)
    share = mask.mean(dim=(1, 2, 3))
    torch.testing.assert_close(weighted.per_item * share, whole.per_item)


def test_the_size_of_one_mask_changes_no_other_items_loss(model, batch):
    """ai-toolkit divides by the mean of the batch's masks, so that an item's loss depends on its company."""
    mask = torch.ones(3, 1, 8, 8)
    before = diffusion_loss(model, replace(batch, mask=mask.clone()), criterion=MSE).per_item
    mask[0, :, 1:] = 0
    after = diffusion_loss(model, replace(batch, mask=mask), criterion=MSE).per_item
    assert torch.equal(after[1:], before[1:])
    assert after[0] != before[0]


def test_captions_and_pixels_are_encoded_where_nothing_is_cached(model, batch):
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(3, 3, 32, 32, generator=generator) * 2 - 1
    raw = replace(batch, latents=None, pixels=pixels, conditioning=None)
    cached = replace(batch, latents=model.encode_images(pixels))
    expected = diffusion_loss(model, cached, criterion=MSE).per_item
    torch.testing.assert_close(diffusion_loss(model, raw, criterion=MSE).per_item, expected)
    given = diffusion_loss(
        model,
        raw,
        criterion=MSE,
        latents=cached.latents,
        conditioning=model.encode_prompts(list(raw.captions)),
    )
    torch.testing.assert_close(given.per_item, expected)
    other = diffusion_loss(model, cached, criterion=MSE, conditioning=model.encode_prompts(["a dog"] * 3))
    assert not torch.allclose(other.per_item, expected, atol=1e-6)


def test_gradients_reach_the_denoiser_and_not_the_autoencoder(model, batch):
    pixels = torch.zeros(3, 3, 32, 32, requires_grad=True)
    weight = model.unet.conv_out.weight
    weight.requires_grad_(True)
    try:
        losses = diffusion_loss(model, replace(batch, latents=None, pixels=pixels), criterion=MSE)
        losses.per_item.sum().backward()
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0
        assert pixels.grad is None
    finally:
        weight.requires_grad_(False)
        weight.grad = None


def test_autocast_touches_only_the_network(model, batch):
    seen: list[torch.dtype] = []

    def watching(prediction, target, objective, t):
        seen.extend([prediction.dtype, target.dtype])
        return (prediction - target) ** 2

    exact = diffusion_loss(model, batch, criterion=MSE).per_item
    with torch.autocast("cpu", torch.bfloat16):
        losses = diffusion_loss(model, batch, criterion=watching, weighting=min_snr(5.0))
        rounded = diffusion_loss(model, batch, criterion=MSE)
    assert seen == [torch.float32, torch.float32]
    assert losses.sums.dtype == torch.float32
    torch.testing.assert_close(rounded.per_item, exact, rtol=0.02, atol=0)
    assert not torch.equal(rounded.per_item, exact)


def test_pixels_are_encoded_outside_of_autocast_as_for_a_cache(model, batch):
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    cached = replace(batch, latents=model.encode_images(pixels).detach())
    uncached = replace(batch, latents=None, pixels=pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(model.encode_images(pixels), cached.latents)  # or this test shows nothing
        losses = [diffusion_loss(model, each, criterion=MSE).per_item for each in (cached, uncached)]
    assert torch.equal(*losses)


def test_sums_add_up_over_micro_batches(model, batch):
    """The element reduction over two batches equals that over both at once."""
    losses = diffusion_loss(model, batch, criterion=MSE)
    parts = [ItemLosses(losses.sums[:1], losses.counts[:1]), ItemLosses(losses.sums[1:], losses.counts[1:])]
    joined = sum(part.sums.sum() for part in parts) / sum(part.counts.sum() for part in parts)
    torch.testing.assert_close(joined, losses.per_item.mean())


@pytest.mark.parametrize("missing", ["noise", "t", "latents"])
def test_an_incomplete_batch_is_refused(model, batch, missing):
    with pytest.raises(ValueError, match="a batch needs"):
        diffusion_loss(model, replace(batch, **{missing: None}), criterion=MSE)
