"""Samplers by the names of a config, as schedulers of diffusers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import diffusers

from toolkit.config_modules.names import SAMPLERS
from toolkit.errors import ConfigError, Problem
from toolkit.models.shared.components import quiet_loading

# A UNet's pipeline needs a scheduler with scale_model_input, which diffusers' flow Euler lacks. DPM-Solver++
# in flow form has it, and at order 1 it takes Euler's steps: on a straight line both are exact alike.
_FLOW_ORDERS = {"flowmatch": 1, "euler": 1, "ddim": 1, "dpmsolver++": 2}
# Only configs of diffusers' flow Euler have it: what the transformers of flow models are published with.
_EULER_MARK = "base_image_seq_len"


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler that `name` means, with the noise schedule of the model's own `config`.

    Raises ConfigError where sampler and model do not go together, KeyError for a name that the config
    sections would have refused.
    """
    sampler = SAMPLERS[name]
    by_euler = _EULER_MARK in config
    is_flow = by_euler or config.get("prediction_type") == "flow_prediction"
    if is_flow and name not in _FLOW_ORDERS:
        remedy = f"use one of {', '.join(_FLOW_ORDERS)}"
        raise ConfigError(
            Problem(
                "config.sampler", f"'{name}' cannot sample a flow model", key="sample.sampler", remedy=remedy
            )
        )
    if by_euler:
        return _transformer_scheduler(name, config)
    if is_flow:
        return diffusers.DPMSolverMultistepScheduler.from_config(
            dict(config), solver_order=_FLOW_ORDERS[name]
        )
    if name == "flowmatch":
        problem = "'flowmatch' samples flow models; this one predicts noise or velocity"
        raise ConfigError(
            Problem("config.sampler", problem, key="sample.sampler", remedy="use ddim or euler")
        )
    return getattr(diffusers, sampler.scheduler).from_config(dict(config), **sampler.settings)


def _transformer_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A sampler for a flow model whose scheduler is diffusers' flow Euler, with the model's own shift."""
    if _FLOW_ORDERS[name] == 1:
        return diffusers.FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    changes: dict[str, Any] = {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "algorithm_type": "dpmsolver++",
        "solver_order": _FLOW_ORDERS[name],
        "final_sigmas_type": "zero",
    }
    if not config.get("use_dynamic_shifting"):
        # The pipelines pass on mu, which this scheduler takes in dynamic shifting only: a mu that is always
        # log(shift) is the fixed shift.
        mu = math.log(config.get("shift", 1.0))
        changes |= {"use_dynamic_shifting": True, "base_shift": mu, "max_shift": mu}
    with quiet_loading():  # the pipelines read the shifts from the config, though this class has none
        return diffusers.DPMSolverMultistepScheduler.from_config(dict(config) | changes)
