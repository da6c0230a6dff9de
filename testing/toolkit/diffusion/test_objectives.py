"""Objectives against diffusers' schedulers, at every level of the table."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from toolkit.diffusion.objectives import OBJECTIVES, EpsilonPrediction, FlowMatching, VelocityPrediction

T = 1000
LEVELS = torch.arange(T)
TIMES = (LEVELS + 1) / T


def scheduler(*, zero_snr: bool = False) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing",
    )


@pytest.fixture
def draws() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, T, 4, 2, 3, generator=generator)
    return latents, noise


@pytest.mark.parametrize("objective_class", [EpsilonPrediction, VelocityPrediction])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_noising_equals_diffusers_at_every_level(objective_class, zero_snr, draws):
    reference = scheduler(zero_snr=zero_snr)
    objective = objective_class(reference.alphas_cumprod)
    assert torch.equal(objective.timesteps(TIMES), LEVELS)
    assert torch.equal(objective.add_noise(*draws, TIMES), reference.add_noise(*draws, LEVELS))


@pytest.mark.parametrize("zero_snr", [False, True])
def test_targets_equal_diffusers_at_every_level(zero_snr, draws):
    latents, noise = draws
    reference = scheduler(zero_snr=zero_snr)
    velocity = VelocityPrediction(reference.alphas_cumprod)
    assert torch.equal(velocity.target(latents, noise, TIMES), reference.get_velocity(latents, noise, LEVELS))
    epsilon = EpsilonPrediction(reference.alphas_cumprod)
    assert torch.equal(epsilon.target(latents, noise, TIMES), noise)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_snr_equals_diffusers_at_every_level(zero_snr):
    reference = scheduler(zero_snr=zero_snr)
    snr = VelocityPrediction(reference.alphas_cumprod).snr(TIMES)
    torch.testing.assert_close(snr, compute_snr(reference, LEVELS), rtol=2e-4, atol=0)
    assert (snr[-1] == 0) == zero_snr


def test_snr_values_of_stable_diffusion():
    snr = EpsilonPrediction(scheduler().alphas_cumprod).snr(torch.tensor([0.001, 0.501, 1.0]))
    torch.testing.assert_close(snr, torch.tensor([1175.44, 0.38185, 0.0046819]), rtol=2e-4, atol=0)


def test_flow_matching_equals_diffusers_at_every_level(draws):
    latents, noise = draws
    reference = FlowMatchEulerDiscreteScheduler()
    reference.set_timesteps(T)
    sigmas = reference.sigmas[:-1]
    flow = FlowMatching()
    expected = reference.scale_noise(latents, reference.timesteps, noise)
    torch.testing.assert_close(flow.add_noise(latents, noise, sigmas), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(flow.timesteps(sigmas), reference.timesteps, rtol=0, atol=1e-3)
    torch.testing.assert_close(flow.snr(torch.tensor([0.25, 0.5, 1.0])), torch.tensor([9.0, 1.0, 0.0]))


def test_a_euler_step_of_diffusers_follows_the_flow_target(draws):
    latents, noise = draws
    reference = FlowMatchEulerDiscreteScheduler()
    reference.set_timesteps(4)
    flow = FlowMatching()
    here, there = reference.sigmas[1].expand(T), reference.sigmas[2].expand(T)
    noisy = flow.add_noise(latents, noise, here)
    stepped = reference.step(flow.target(latents, noise, here), reference.timesteps[1], noisy).prev_sample
    torch.testing.assert_close(stepped, flow.add_noise(latents, noise, there), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_a_perfect_prediction_gives_the_latents_back(name, draws):
    latents, noise = draws
    table = scheduler().alphas_cumprod
    objective = FlowMatching() if name == "flow" else OBJECTIVES[name](table)
    noisy = objective.add_noise(latents, noise, TIMES)
    denoised = objective.denoised(noisy, objective.target(latents, noise, TIMES), TIMES)
    # The noise target divides by alpha, 0.068 at the last level, which enlarges float32 rounding.
    torch.testing.assert_close(denoised, latents, rtol=0, atol=2e-5 if name == "epsilon" else 2e-6)
    assert objective.name == name


def test_velocity_gives_the_latents_back_even_from_pure_noise(draws):
    latents, noise = draws
    velocity = VelocityPrediction(scheduler(zero_snr=True).alphas_cumprod)
    noisy = velocity.add_noise(latents, noise, TIMES)
    denoised = velocity.denoised(noisy, velocity.target(latents, noise, TIMES), TIMES)
    torch.testing.assert_close(denoised, latents, rtol=0, atol=2e-6)
    assert torch.equal(noisy[-1], noise[-1])


def test_other_times_round_to_the_grid():
    objective = EpsilonPrediction(scheduler().alphas_cumprod)
    t = torch.tensor([0.0, 0.0002, 0.0014, 0.0016, 0.99949, 0.9996, 1.0])
    assert objective.timesteps(t).tolist() == [0, 0, 0, 1, 998, 999, 999]
    torch.testing.assert_close(objective.snap(t), (objective.timesteps(t) + 1) / T)
    assert torch.equal(objective.snap(TIMES), TIMES)
    assert torch.equal(FlowMatching().snap(t), t)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noising_stays_float32_for_low_precision_inputs(dtype, draws):
    latents, noise = (draw[:3].to(dtype) for draw in draws)
    objective = VelocityPrediction(scheduler().alphas_cumprod)
    t = TIMES[:3]
    for value in (
        objective.add_noise(latents, noise, t),
        objective.target(latents, noise, t),
        objective.snr(t),
    ):
        assert value.dtype == torch.float32
    # diffusers in this dtype would use a rounded table: at level 0 in bfloat16, sigma 0 instead of 0.029.
    expected = scheduler().add_noise(latents.float(), noise.float(), LEVELS[:3])
    assert torch.equal(objective.add_noise(latents, noise, t), expected)


@pytest.mark.parametrize(
    "table", [torch.ones(2, 2), torch.tensor([1.5]), torch.tensor([float("nan")]), torch.ones(0)]
)
def test_a_table_that_is_none_is_refused(table):
    with pytest.raises(ValueError, match="alphas_cumprod"):
        EpsilonPrediction(table)
