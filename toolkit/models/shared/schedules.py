"""Noise schedules of the Stable Diffusion families: what a UNet predicts, and how it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from toolkit.diffusion.objectives import EpsilonPrediction, FlowMatching, Objective, VelocityPrediction
from toolkit.errors import ModelError, Problem
from toolkit.models.base import LatentSpec
from toolkit.models.shared.latents import vae_downscale

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel

    from toolkit.models.shared.families import Components

M = TypeVar("M")

# What these models sample with where a scheduler config leaves it open; diffusers' own defaults are for pixels.
_SAMPLING_DEFAULTS = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
# DPM-Solver++ of order 1 is Euler's method here, and unlike diffusers' flow Euler it fits these pipelines.
_FLOW_SCHEDULER = {
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 1.0,
    "algorithm_type": "dpmsolver++",
    "solver_order": 1,
    "final_sigmas_type": "zero",
    "steps_offset": 1,
}
# What a scheduler needs to begin at pure noise, training and sampling (arXiv:2305.08891, sections 3.1 and 3.3).
ZERO_TERMINAL_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
_OBJECTIVES: dict[str, Callable[[Tensor], Objective]] = {
    "epsilon": EpsilonPrediction,
    "v_prediction": VelocityPrediction,
}


def with_schedule(
    make: Callable[[Components], M],
    components: Components,
    name: str,
    *,
    prediction_type: str | None,
    zero_terminal_snr: bool,
) -> M:
    """The model that `make` makes of components, with another schedule where that is asked for.

    name: what the user calls it. prediction_type: epsilon, v_prediction or flow, None for what the
    scheduler's config says. zero_terminal_snr: rescale the noise table so that its last level is pure noise
    (arXiv:2305.08891). Raises ModelError for a schedule that cannot be trained.
    """
    if prediction_type is not None:
        components.scheduler_config["prediction_type"] = prediction_type
    if zero_terminal_snr:
        components.scheduler_config |= ZERO_TERMINAL_SNR
    try:
        return make(components)
    except ValueError as error:
        problem = Problem("model.schedule", f"'{name}': {error}", key="model.prediction_type")
        raise ModelError(problem) from error


def make_objective(scheduler_config: Mapping[str, Any]) -> Objective:
    """The objective of a scheduler config of diffusers. Raises ValueError if it cannot be trained."""
    from diffusers import DDPMScheduler

    prediction_type = scheduler_config.get("prediction_type", "epsilon")
    if prediction_type in ("flow", "flow_prediction"):
        return FlowMatching()
    if prediction_type not in _OBJECTIVES:
        raise ValueError(f"prediction_type {prediction_type!r} is none of epsilon, v_prediction, flow")
    table = DDPMScheduler.from_config(dict(scheduler_config)).alphas_cumprod
    if prediction_type == "epsilon" and table[-1] == 0:
        # The last level is pure noise: predicting it says nothing about the picture (arXiv:2305.08891).
        raise ValueError("zero terminal SNR (rescale_betas_zero_snr) needs prediction_type v_prediction")
    return _OBJECTIVES[prediction_type](table)


def sampling_config(objective: Objective, scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the scheduler that samples what the objective trains."""
    if isinstance(objective, FlowMatching):
        return dict(_FLOW_SCHEDULER)
    return _SAMPLING_DEFAULTS | dict(scheduler_config)


def pipeline_scheduler(objective: Objective, config: Mapping[str, Any]) -> SchedulerMixin:
    """The scheduler that a pipeline over a UNet begins with."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    is_flow = isinstance(objective, FlowMatching)
    cls = DPMSolverMultistepScheduler if is_flow else DDIMScheduler
    scheduler: SchedulerMixin = cls.from_config(dict(config))
    return scheduler


def latent_spec(vae: AutoencoderKL, unet: UNet2DConditionModel) -> LatentSpec:
    """The geometry of the latents. Sides in pixels divide by every halving, so that none rounds."""
    downscale = vae_downscale(vae)
    halvings = 2 ** (len(unet.config.block_out_channels) - 1)
    return LatentSpec(vae.config.latent_channels, downscale, size_multiple=downscale * halvings)
