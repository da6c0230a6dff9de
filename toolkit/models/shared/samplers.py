"""Samplers by the names of a config, as schedulers of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers

from toolkit.config_modules.names import SAMPLERS
from toolkit.errors import ConfigError, Problem

# A UNet's pipeline needs a scheduler with scale_model_input, which diffusers' flow Euler lacks. DPM-Solver++
# in flow form has it, and at order 1 it takes Euler's steps: on a straight line both are exact alike.
_FLOW_ORDERS = {"flowmatch": 1, "euler": 1, "ddim": 1, "dpmsolver++": 2}


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler that `name` means, with the noise schedule of the model's own `config`.

    Raises ConfigError where sampler and model do not go together, KeyError for a name that the config
    sections would have refused.
    """
    sampler = SAMPLERS[name]
    is_flow = config.get("prediction_type") == "flow_prediction"
    if is_flow and name not in _FLOW_ORDERS:
        remedy = f"use one of {', '.join(_FLOW_ORDERS)}"
        raise ConfigError(
            Problem(
                "config.sampler", f"'{name}' cannot sample a flow model", key="sample.sampler", remedy=remedy
            )
        )
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
