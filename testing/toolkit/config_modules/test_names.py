"""Tables of names against what they name."""

from __future__ import annotations

import contextlib

import diffusers
import pytest
import torch

from toolkit.config_modules.model import ModelConfig
from toolkit.config_modules.names import (
    ARCH_FLAGS,
    ARCHES,
    ARCHES_NOT_YET,
    DTYPES,
    FLOW_SAMPLERS,
    LR_SCHEDULERS,
    OPTIMIZERS,
    OPTIMIZERS_NOT_YET,
    RATE_FREE,
    SAMPLERS,
    SCHEDULE_FREE,
)
from toolkit.errors import ConfigError
from toolkit.models.shared.samplers import make_scheduler
from toolkit.training.lr_schedules import SCHEDULES
from toolkit.training.optimizers import OPTIMIZERS as OPTIMIZER_TABLE

# diffusers' schedulers compute in numpy with calls that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SD15_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_are_schedulers_of_diffusers(name):
    sampler = SAMPLERS[name]
    base = {} if name == "flowmatch" else diffusers.DDPMScheduler(**SD15_NOISE).config
    scheduler = getattr(diffusers, sampler.scheduler).from_config(base, **sampler.settings)
    for key, value in sampler.settings.items():
        assert scheduler.config[key] == value
    scheduler.set_timesteps(5)
    latents = torch.zeros(1, 4, 4, 4)
    torch.manual_seed(0)
    for t in scheduler.timesteps:
        latents = scheduler.step(torch.ones_like(latents), t, latents).prev_sample
    assert latents.isfinite().all()
    assert latents.abs().max() > 0


def test_flow_samplers_are_those_that_the_model_takes():
    config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": 1000}
    taken = []
    for name in SAMPLERS:
        with contextlib.suppress(ConfigError):
            make_scheduler(name, config)
            taken.append(name)
    assert sorted(taken) == sorted(FLOW_SAMPLERS)


def test_dtypes_are_torch_dtypes():
    assert all(getattr(torch, name).is_floating_point for name in DTYPES.values())


def test_optimizers_and_schedules_are_those_of_the_trainer():
    assert list(dict.fromkeys(OPTIMIZERS.values())) == OPTIMIZER_TABLE.names()
    assert set(LR_SCHEDULERS.values()) == set(SCHEDULES)
    assert {*RATE_FREE, *SCHEDULE_FREE} <= set(OPTIMIZER_TABLE)
    assert not set(OPTIMIZERS) & set(OPTIMIZERS_NOT_YET)


def test_architectures_come_from_the_catalogue():
    assert ARCHES["sd1"] == ARCHES["sd15"] == "sd15"
    assert ARCHES["xl"] == "sdxl" and ARCHES["flux1"] == "flux"
    assert {"cogview4", "wan21"} <= set(ARCHES_NOT_YET)
    assert not set(ARCHES) & set(ARCHES_NOT_YET)


def test_every_older_flag_is_honoured_or_refused_by_name():
    assert set(ARCH_FLAGS.values()) <= {*ARCHES.values(), *ARCHES_NOT_YET}
    honoured = {flag for flag, arch in ARCH_FLAGS.items() if arch in ARCHES.values()}
    assert honoured == set(ARCH_FLAGS) & set(ModelConfig.model_fields)
    assert set(ARCH_FLAGS) - honoured == set(ARCH_FLAGS) & set(ModelConfig.NOT_YET)
