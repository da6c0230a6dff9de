"""Weightings against their closed forms and diffusers' SNR."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from toolkit.diffusion.loss_weighting import min_snr, snr_gamma
from toolkit.diffusion.objectives import EpsilonPrediction, FlowMatching, VelocityPrediction

LEVELS = torch.arange(1000)
TIMES = (LEVELS + 1) / 1000
FORMS = [min_snr(5.0), snr_gamma(5.0)]


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
