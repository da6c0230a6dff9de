"""Weightings against their closed forms and diffusers' SNR."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from toolkit.diffusion.loss_weighting import (
    bell,
    cosmap,
    debiased,
    debiased_as_kohya,
    half_bell,
    min_snr,
    product,
    snr_gamma,
)
from toolkit.diffusion.objectives import EpsilonPrediction, FlowMatching, VelocityPrediction

LEVELS = torch.arange(1000)
TIMES = (LEVELS + 1) / 1000
FORMS = [min_snr(5.0), snr_gamma(5.0), debiased]


def scheduler(*, zero_snr: bool = False) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=zero_snr
    )


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_equals_the_form_on_diffusers_snr(gamma):
    reference = scheduler()
    snr = compute_snr(reference, LEVELS)
    clipped = snr.clamp(max=gamma)
    epsilon = min_snr(gamma)(EpsilonPrediction(reference.alphas_cumprod), TIMES)
    velocity = min_snr(gamma)(VelocityPrediction(reference.alphas_cumprod), TIMES)
    torch.testing.assert_close(epsilon, clipped / snr, rtol=2e-4, atol=0)
    torch.testing.assert_close(velocity, clipped / (snr + 1), rtol=2e-4, atol=0)


def test_min_snr_values_of_stable_diffusion():
    t = torch.tensor([0.001, 0.501])
    table = scheduler().alphas_cumprod
    epsilon, velocity = (min_snr(5.0)(form(table), t) for form in (EpsilonPrediction, VelocityPrediction))
    torch.testing.assert_close(epsilon, torch.tensor([0.004254, 1.0]), rtol=3e-4, atol=0)
    torch.testing.assert_close(velocity, torch.tensor([0.004250, 0.276332]), rtol=3e-4, atol=0)


@pytest.mark.parametrize("weighting", FORMS)
def test_noise_and_velocity_forms_are_one_choice(weighting):
    table = scheduler().alphas_cumprod
    epsilon, velocity = EpsilonPrediction(table), VelocityPrediction(table)
    snr = epsilon.snr(TIMES)
    converted = weighting(epsilon, TIMES) * snr / (snr + 1)
    torch.testing.assert_close(weighting(velocity, TIMES), converted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("weighting", FORMS)
@pytest.mark.parametrize("form", [EpsilonPrediction, VelocityPrediction])
def test_weights_are_finite_at_zero_snr(weighting, form):
    objective = form(scheduler(zero_snr=True).alphas_cumprod)
    assert objective.snr(TIMES)[-1] == 0
    assert torch.isfinite(weighting(objective, TIMES)).all()


def test_zero_snr_values():
    table = scheduler(zero_snr=True).alphas_cumprod
    last = TIMES[-1:]
    assert min_snr(5.0)(EpsilonPrediction(table), last).item() == 1.0
    assert min_snr(5.0)(VelocityPrediction(table), last).item() == 0.0
    assert snr_gamma(5.0)(VelocityPrediction(table), last).item() == 5.0


@pytest.mark.parametrize("weighting", FORMS)
def test_flow_matching_is_refused(weighting):
    with pytest.raises(ValueError, match="not defined for the objective 'flow'"):
        weighting(FlowMatching(), TIMES)


@pytest.mark.parametrize("make", [min_snr, snr_gamma])
@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan")])
def test_gamma_must_be_positive(make, gamma):
    with pytest.raises(ValueError, match="gamma"):
        make(gamma)


def test_debiased_values_of_stable_diffusion():
    """arXiv:2310.08442: 1 / sqrt(SNR); the exact form of v at pure noise is 0.0681, kohya's 0.9953."""
    table, last = scheduler().alphas_cumprod, TIMES[-1:]
    snr = compute_snr(scheduler(), LEVELS)
    torch.testing.assert_close(debiased(EpsilonPrediction(table), TIMES), snr**-0.5, rtol=2e-4, atol=0)
    assert debiased(VelocityPrediction(table), last).item() == pytest.approx(0.0681, abs=1e-4)
    assert debiased_as_kohya(VelocityPrediction(table), last).item() == pytest.approx(0.9953, abs=1e-4)
    first = debiased_as_kohya(EpsilonPrediction(table), TIMES[:1]).item()
    assert first == pytest.approx(1000**-0.5)  # SNR 1175 is capped


@pytest.mark.parametrize("weighting", [bell, cosmap])
def test_weights_over_t_have_mean_one_and_their_top_in_the_middle(weighting):
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    weights = weighting(FlowMatching(), t)
    assert weights.mean().item() == pytest.approx(1, abs=1e-6)
    assert t[weights.argmax()].item() == pytest.approx(0.5, abs=1e-4)
    torch.testing.assert_close(weights, weights.flip(0))


def test_bells_equal_the_tables_they_stand_for():
    """ai-toolkit's tables over 1000 descending steps: exp(-2 ((i - 500) / 1000)^2) less its least, mean 1."""
    i = torch.arange(1000, dtype=torch.float64)
    table = torch.exp(-2 * ((i - 500) / 1000) ** 2)
    table = (table - table.min()) / (table - table.min()).mean()
    t = 1 - i / 1000
    torch.testing.assert_close(bell(FlowMatching(), t), table, rtol=0, atol=5e-3)
    half = table.clone()
    half[500:] = table.max()
    torch.testing.assert_close(half_bell(FlowMatching(), t), half, rtol=0, atol=5e-3)


def test_cosmap_equals_diffusers():
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    sigmas = torch.linspace(0.01, 1, 50)
    torch.testing.assert_close(
        cosmap(FlowMatching(), sigmas), compute_loss_weighting_for_sd3("cosmap", sigmas)
    )


def test_weightings_multiply():
    objective = EpsilonPrediction(scheduler().alphas_cumprod)
    both = product([min_snr(5.0), bell])
    torch.testing.assert_close(
        both(objective, TIMES), min_snr(5.0)(objective, TIMES) * bell(objective, TIMES)
    )
    assert product([]) is None
