"""Noise of an item: its spread, its covariance, and what the target holds of it."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from toolkit.diffusion.noise import NoiseSettings, make_noise

SHAPE = (4, 16, 16)


def draw(settings: NoiseSettings, seed: int = 0, shape=SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    return make_noise(settings, shape, torch.Generator().manual_seed(seed))


def many(settings: NoiseSettings, count: int = 400) -> torch.Tensor:
    return torch.stack([draw(settings, seed)[0] for seed in range(count)])


def test_by_default_it_is_the_generators_normal_and_nothing_is_split():
    noise, mixed = draw(NoiseSettings())
    assert mixed is noise
    assert torch.equal(noise, torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)))
    assert not NoiseSettings().splits


def test_offset_adds_its_square_to_the_variance_and_to_the_covariance_of_places():
    noise = many(NoiseSettings(offset=0.3)).double()
    assert noise.var().item() == pytest.approx(1 + 0.3**2, rel=0.02)
    covariance = (noise[..., :8] * noise[..., 8:]).mean().item()
    assert covariance == pytest.approx(0.3**2, abs=0.02)
    other_channel = (noise[:, 0] * noise[:, 1]).mean().item()
    assert abs(other_channel) < 0.02


def test_the_target_holds_the_offset():
    noise, mixed = draw(NoiseSettings(offset=0.5))
    assert mixed is noise


def test_a_setting_adds_to_the_plain_draw_and_does_not_change_it():
    plain, _ = draw(NoiseSettings())
    shifted, _ = draw(NoiseSettings(offset=0.5))
    difference = shifted - plain
    torch.testing.assert_close(difference, difference[:, :1, :1].expand(SHAPE), rtol=0, atol=1e-6)


def test_input_perturbation_is_mixed_in_and_not_asked_for():
    """arXiv:2301.11706: the noise mixed in has variance 1 + gamma^2, the target is the plain noise."""
    settings = NoiseSettings(perturbation=0.5)
    pairs = [draw(settings, seed) for seed in range(100)]
    target, mixed = (torch.stack(each).double() for each in zip(*pairs, strict=True))
    assert torch.equal(target[0].float(), draw(NoiseSettings())[0])
    assert mixed.var().item() == pytest.approx(1.25, rel=0.02)
    assert (target * (mixed - target)).mean().item() == pytest.approx(0, abs=0.02)
    assert settings.splits


def test_multires_noise_has_unit_spread_and_neighbours_agree():
    settings = NoiseSettings(multires_iterations=6, multires_discount=0.8)
    noise = many(settings, 100).double()
    assert torch.stack([each.std() for each in noise]).sub(1).abs().max() < 1e-5
    assert (noise[..., 1:] * noise[..., :-1]).mean().item() > 0.2
    plain = many(NoiseSettings(), 100).double()
    assert abs((plain[..., 1:] * plain[..., :-1]).mean().item()) < 0.02


def test_multires_noise_of_oblong_and_tiny_latents():
    for shape in ((4, 3, 17), (4, 1, 1), (16, 2, 64)):
        noise, _ = draw(NoiseSettings(multires_iterations=10, multires_discount=0.5), shape=shape)
        assert noise.shape == shape
        assert torch.isfinite(noise).all()


def test_multipliers():
    plain, _ = draw(NoiseSettings())
    doubled, mixed = draw(NoiseSettings(multiplier=2.0))
    assert torch.equal(doubled, 2 * plain) and mixed is doubled
    target, mixed = draw(NoiseSettings(target_multiplier=1.5))
    assert torch.equal(target, 1.5 * plain) and torch.equal(mixed, plain)


def test_random_factor_and_shift_are_those_of_whole_channels():
    plain, _ = draw(NoiseSettings())
    factor = draw(NoiseSettings(random_multiplier=0.2))[0] / plain
    assert factor.flatten(1).std(1).max() < 1e-4
    assert len(set(factor[:, 0, 0].tolist())) == 4
    spread = many(NoiseSettings(random_shift=0.4)).mean(dim=(2, 3)).std().item()
    assert spread == pytest.approx((0.4**2 + 1 / 256) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", [f.name for f in fields(NoiseSettings) if f.name != "multires_discount"])
def test_every_setting_counts(name):
    value = 3 if name == "multires_iterations" else 0.5
    changed = draw(NoiseSettings(**{name: value}))
    plain = draw(NoiseSettings())
    assert not all(torch.equal(a, b) for a, b in zip(changed, plain, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(changed, draw(NoiseSettings(**{name: value})), strict=True))
