"""Settings against the architecture of the model: what only others read, or what it cannot do. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.config_modules.base import Location, Section, is_set
from toolkit.config_modules.explain import shown
from toolkit.config_modules.job import ModelProcess
from toolkit.config_modules.names import FLOW_SAMPLERS
from toolkit.config_modules.process import DiffusionProcess, GenerateProcess
from toolkit.models.catalogue import ARCHITECTURES

Finding = tuple[Location, str, str, str | None]

_CONFLICT = "config.conflict"
_OWN_KEYS = {key for entry in ARCHITECTURES.values() for key in entry.own_keys}


def check_architecture(process: ModelProcess) -> Iterator[Finding]:
    """Everything that the model's architecture has no use for, or that goes against it."""
    entry = ARCHITECTURES[process.model.arch]
    for key in sorted(_OWN_KEYS - set(entry.own_keys)):
        name, field = key.split(".")
        section = getattr(process, name, None)
        if isinstance(section, Section) and field in type(section).model_fields and is_set(section, field):
            message = f"{shown(getattr(section, field))} means nothing to {entry.title}"
            yield (name, field), _CONFLICT, message, "leave it out, or set model.arch"
    if entry.noise_scheduler == "flowmatch":
        if process.model.prediction_type not in (None, "flow"):
            message = f"{entry.title} predicts flow"
            yield ("model", "prediction_type"), _CONFLICT, message, "leave it out"
        if isinstance(process, GenerateProcess) and process.generate.sampler not in FLOW_SAMPLERS:
            message = f"'{process.generate.sampler}' cannot sample a flow-matching model"
            yield ("generate", "sampler"), _CONFLICT, message, f"use {', '.join(FLOW_SAMPLERS)}"
    if isinstance(process, DiffusionProcess):
        yield from _check_guidance(process)


def _check_guidance(process: DiffusionProcess) -> Iterator[Finding]:
    """model.use_flux_cfg says all about the guidance embedding."""
    if process.model.use_flux_cfg and is_set(process.train, "bypass_guidance_embedding"):
        return  # the same, said twice
    if process.model.use_flux_cfg and "bypass_guidance_embedding" in process.train.model_fields_set:
        message = "false contradicts model.use_flux_cfg, which leaves the guidance embedding out"
        yield ("train", "bypass_guidance_embedding"), _CONFLICT, message, "leave it out"


def unread_sample_settings(process: ModelProcess) -> dict[Location, tuple[Section, str]]:
    """Settings of pictures that the model's pipeline has no use for -> their section and why."""
    model = process.model
    if not ARCHITECTURES[model.arch].distilled or not isinstance(process, DiffusionProcess | GenerateProcess):
        return {}
    sections: dict[Location, Section] = {}
    if isinstance(process, GenerateProcess):
        sections["generate",] = process.generate
    else:
        for name, sample in (("sample", process.sample), ("first_sample", process.first_sample)):
            if sample is not None:
                sections[name,] = sample
                sections |= {(name, "samples", i): each for i, each in enumerate(sample.samples)}
    reasons = {"guidance_rescale": "this model's pipeline has none"}
    if not model.use_flux_cfg:
        reasons["neg"] = "this model is guided without a negative prompt (model.use_flux_cfg uses one)"
    return {
        (*place, key): (section, reason)
        for place, section in sections.items()
        for key, reason in reasons.items()
    }
