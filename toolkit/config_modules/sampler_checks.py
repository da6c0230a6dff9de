"""Checks of samplers: what the model predicts, and how many steps each can take. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.config_modules.base import Location
from toolkit.config_modules.model import ModelConfig
from toolkit.config_modules.names import SAMPLERS
from toolkit.config_modules.process import DiffusionProcess, GenerateProcess
from toolkit.config_modules.prompt_flags import parse_prompt_flags
from toolkit.config_modules.sample import SampleConfig
from toolkit.models.catalogue import ARCHITECTURES
from toolkit.models.geometry import read_json
from toolkit.paths import resolve_model

Finding = tuple[Location, str, str, str | None]
Drawn = tuple[Location, str, int, str]  # place of the steps, sampler, steps, how the place is called

_NOISE_LEVELS = 1000  # that nearly every model is trained at
# Many models' schedules begin one level late, and some samplers look one level ahead.
_UNUSED_LEVELS = 2


def known_objective(model: ModelConfig) -> str | None:
    """What a model predicts by the config's word or a local folder's; None if only loading it can tell."""
    if ARCHITECTURES[model.arch].noise_scheduler == "flowmatch":
        return "flow"
    if model.prediction_type is not None:
        return model.prediction_type
    schedule = _schedule(model)
    if schedule is None:
        return None
    said = str(schedule.get("prediction_type", "epsilon"))
    name = "flow" if said == "flow_prediction" else said
    return name if name in ("epsilon", "v_prediction", "flow") else None


def samplers(process: DiffusionProcess) -> Iterator[tuple[Location, str]]:
    """Every sampler that the config names, with its place."""
    for name, sample in _samples(process):
        if "sampler" in sample.model_fields_set:
            yield (name, "sampler"), sample.sampler
        for index, item in enumerate(sample.samples):
            if item.sampler:
                yield (name, "samples", index, "sampler"), item.sampler


def check_steps(process: DiffusionProcess | GenerateProcess, *, flow: bool) -> Iterator[Finding]:
    """Numbers of steps that a sampler cannot take. flow: the model is a flow-matching one."""
    told = set()
    for place, name, steps, called in _drawn(process):
        least, most = (1, steps) if flow else _limits(process.model, name)
        if least <= steps <= most or place in told:
            continue
        told.add(place)
        limit = f"at least {least}" if steps < least else f"at most {most}"
        yield place, "config.bad_value", f"{called}must be {limit} with sampler {name}, not {steps}", None


def _limits(model: ModelConfig, name: str) -> tuple[int, int]:
    """The fewest and the most steps of a sampler with a model that predicts noise or velocity."""
    sampler = SAMPLERS[name]
    levels = (_schedule(model) or {}).get("num_train_timesteps", _NOISE_LEVELS)
    allowed = (levels if isinstance(levels, int) else _NOISE_LEVELS) - _UNUSED_LEVELS
    return sampler.least_steps, min(allowed, sampler.most_steps or allowed)


def _schedule(model: ModelConfig) -> Mapping[str, Any] | None:
    """The noise schedule of a local folder; None where there is none."""
    folder = resolve_model(model.name_or_path)
    file = folder / "scheduler" / "scheduler_config.json" if folder is not None else None
    return None if file is None or not file.is_file() else read_json(file)


def _samples(process: DiffusionProcess) -> Iterator[tuple[str, SampleConfig]]:
    for name, sample in (("sample", process.sample), ("first_sample", process.first_sample)):
        if sample is not None:
            yield name, sample


def _drawn(process: DiffusionProcess | GenerateProcess) -> Iterator[Drawn]:
    """Every number of steps that pictures are drawn with."""
    if isinstance(process, GenerateProcess):
        generate = process.generate
        for index, prompt in enumerate(generate.prompts):
            place: Location = ("generate", "prompts", index)
            usual = ("generate", "sample_steps"), generate.sample_steps
            yield _steps_of(prompt, place, generate.sampler, *usual)
        return
    for name, sample in _samples(process):
        usual = (name, "sample_steps"), sample.sample_steps
        if not sample.prompts and not sample.samples:
            yield usual[0], sample.sampler, usual[1], ""
        for index, prompt in enumerate(sample.prompts):
            yield _steps_of(prompt, (name, "prompts", index), sample.sampler, *usual)
        for index, item in enumerate(sample.samples):
            place = (name, "samples", index)
            own = usual if item.sample_steps is None else ((*place, "sample_steps"), item.sample_steps)
            yield _steps_of(item.prompt, (*place, "prompt"), item.sampler or sample.sampler, *own)


def _steps_of(prompt: str, place: Location, sampler: str, usual: Location, steps: int) -> Drawn:
    """The steps of one prompt: its flag's, or what is usual beside it."""
    _, flags = parse_prompt_flags(prompt)
    if "sample_steps" not in flags:
        return usual, sampler, steps, ""
    flag = "--steps" if "--steps" in prompt else "--s"
    return place, sampler, flags["sample_steps"], f"prompt flag {flag} "
