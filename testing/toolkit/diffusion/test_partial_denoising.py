"""Noise denoised part of the way, against diffusers' own samplers."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from toolkit.diffusion.objectives import EpsilonPrediction, FlowMatching, Objective, VelocityPrediction
from toolkit.diffusion.partial_denoising import denoise_partly, denoise_step, implied_noise, noise_levels
from toolkit.seeding import keyed_generator

NOISE = torch.randn(3, 4, 4, 4, generator=keyed_generator("test", "path"))
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def scheduler(prediction_type: str = "epsilon", **more) -> DDIMScheduler:
    return DDIMScheduler(**SCHEDULE, prediction_type=prediction_type, set_alpha_to_one=False, **more)


OBJECTIVES = {
    "epsilon": EpsilonPrediction(scheduler().alphas_cumprod),
    "v_prediction": VelocityPrediction(scheduler().alphas_cumprod),
    "zero_snr": VelocityPrediction(scheduler(rescale_betas_zero_snr=True).alphas_cumprod),
    "flow": FlowMatching(),
}


def predict(noisy: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Some smooth function of the noisy latents and their level."""
    return torch.sin(noisy) * t.reshape(-1, 1, 1, 1) + 0.1 * noisy


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_noise_that_was_mixed_in_is_found_again(objective: Objective):
    clean, noise, t = NOISE, NOISE.flip(0), torch.tensor([0.3, 0.9, 1.0])
    noisy = objective.add_noise(clean, noise, t)
    assert torch.allclose(implied_noise(objective, noisy, clean, t), noise, atol=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_perfect_prediction_leads_to_the_same_picture_with_less_noise(objective: Objective):
    clean, noise = NOISE, NOISE.flip(0)
    t, to = objective.snap(torch.full((3,), 0.9)), objective.snap(torch.full((3,), 0.4))
    noisy, target = objective.add_noise(clean, noise, t), objective.target(clean, noise, t)
    found = denoise_step(objective, noisy, target, t, to)
    assert torch.allclose(found, objective.add_noise(clean, noise, to), atol=1e-4)


@pytest.mark.parametrize("name", ["epsilon", "v_prediction"])
def test_a_path_is_ddims(name):
    ddim = scheduler(name, timestep_spacing="trailing")
    ddim.set_timesteps(10)
    objective = OBJECTIVES[name]
    assert (noise_levels(objective, 10) * 1000 - 1).round().tolist() == ddim.timesteps.tolist()
    latents = NOISE.clone()
    for step in ddim.timesteps[:4]:
        t = torch.full((3,), (step + 1) / 1000)
        latents = ddim.step(predict(latents, t, torch.arange(3)), step, latents).prev_sample
    found, t = denoise_partly(objective, predict, NOISE, torch.full((3,), 4), num_steps=10)
    assert torch.allclose(found, latents, atol=1e-4)
    assert torch.allclose(t, torch.full((3,), 0.6))


def test_a_path_of_flow_is_eulers():
    euler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    euler.set_timesteps(sigmas=[1 - k / 10 for k in range(10)])
    latents = NOISE.clone()
    for step in euler.timesteps[:4]:
        t = (step / 1000).expand(3)
        latents = euler.step(predict(latents, t, torch.arange(3)), step, latents).prev_sample
    found, _ = denoise_partly(FlowMatching(), predict, NOISE, torch.full((3,), 4), num_steps=10)
    assert torch.allclose(found, latents, atol=1e-5)


def test_each_item_stops_where_it_was_told_to_and_is_not_computed_further():
    objective, asked = OBJECTIVES["flow"], []

    def counting(noisy, t, rows):
        asked.append(rows.tolist())
        return predict(noisy, t, rows)

    found, t = denoise_partly(objective, counting, NOISE, torch.tensor([0, 3, 1]), num_steps=5)
    assert asked == [[1, 2], [1], [1]]
    assert torch.equal(found[0], NOISE[0])
    assert torch.allclose(t, torch.tensor([1.0, 0.4, 0.8]))
    for index, steps in enumerate([0, 3, 1]):
        alone, _ = denoise_partly(
            objective, predict, NOISE[index : index + 1], torch.tensor([steps]), num_steps=5
        )
        assert torch.allclose(found[index], alone[0], atol=1e-6)
