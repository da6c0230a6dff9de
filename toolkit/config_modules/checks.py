"""Checks across sections: settings that are fine alone and wrong together. Torch-free.

Each check yields (location in the process, code, message, remedy); the loader adds file and line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.config_modules.base import Location
from toolkit.config_modules.generate import GenerateConfig
from toolkit.config_modules.job import AnyProcess
from toolkit.config_modules.loop import LoopConfig
from toolkit.config_modules.names import FLOW_SAMPLERS
from toolkit.config_modules.process import GenerateProcess, TrainProcess, VaeProcess
from toolkit.config_modules.sample import SampleConfig
from toolkit.errors import ConfigError, did_you_mean
from toolkit.paths import DATASETS_ROOT, resolve_path
from toolkit.training.lr_schedules import make_schedule

Finding = tuple[Location, str, str, str | None]


def _finding(location: Location, code: str, message: str, remedy: str | None = None) -> Finding:
    return location, code, message, remedy


def check_process(process: AnyProcess) -> Iterator[Finding]:
    """Everything wrong with a process whose sections are right one by one."""
    if not isinstance(process, GenerateProcess):
        yield from _check_loop(process.train)
    if isinstance(process, TrainProcess):
        yield from _check_trained_parts(process)
        yield from _check_text_cache(process)
        yield from _check_noise(process)
        for name, sample in (("sample", process.sample), ("first_sample", process.first_sample)):
            yield from _check_sampler(process, name, sample)
    elif isinstance(process, VaeProcess):
        for index, source in enumerate(process.sample.sources):
            yield from _check_file(source, ("sample", "sources", index))
    elif isinstance(process, GenerateProcess):
        yield from _check_generate(process.generate)


def check_folders(raw: Mapping[str, Any]) -> Iterator[Finding]:
    """Dataset folders that are not there; takes raw data, so that it runs beside other errors."""
    entries = raw.get("datasets")
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        for key in ("folder_path", "dataset_path"):
            folder = entry.get(key) if isinstance(entry, Mapping) else None
            if isinstance(folder, str) and folder and not folder.lower().endswith((".json", ".jsonl")):
                yield from _check_folder(folder, ("datasets", index, key))


def _check_folder(folder: str, location: Location) -> Iterator[Finding]:
    path = resolve_path(folder)
    if path.is_dir():
        return
    if path.exists():
        message, remedy = f"{folder} is a file", "give the folder it lies in"
    else:
        near = {entry.name: entry for entry in [*_folders(DATASETS_ROOT), *_folders(path.parent)]}
        guess = did_you_mean(path.name, near)
        message = f"folder {folder} does not exist"
        remedy = f"did you mean {near[guess]}?" if guess else f"relative to {Path.cwd()}"
    yield _finding(location, "config.dataset_folder", message, remedy)


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(entry for entry in parent.iterdir() if entry.is_dir())
    except OSError:
        return []


def _check_file(name: str, location: Location) -> Iterator[Finding]:
    if not resolve_path(name).is_file():
        yield _finding(location, "config.missing_file", f"file {name} does not exist")


def _check_loop(loop: LoopConfig) -> Iterator[Finding]:
    try:
        make_schedule(loop.lr_scheduler, loop.lr_scheduler_params)
    except ConfigError as error:
        for problem in error.problems:
            location = tuple((problem.key or "train.lr_scheduler_params").split("."))
            yield location, problem.code, problem.message, problem.remedy


def _check_trained_parts(process: TrainProcess) -> Iterator[Finding]:
    train = process.train
    if not train.train_unet and not train.train_text_encoder:
        remedy = "set train_unet or train_text_encoder to true"
        yield _finding(("train", "train_unet"), "config.nothing_to_train", "nothing would be trained", remedy)
    if process.network and process.save.save_format == "diffusers":
        message = "diffusers is for full models; a network is one file"
        yield _finding(("save", "save_format"), "config.conflict", message, "leave it out")


def _check_text_cache(process: TrainProcess) -> Iterator[Finding]:
    train = process.train
    cached: list[Location] = [
        ("datasets", index, "cache_text_embeddings")
        for index, dataset in enumerate(process.datasets)
        if dataset.cache_text_embeddings
    ]
    if train.train_text_encoder:
        remedy = "turn one of them off: cached embeddings cannot follow an encoder in training"
        for location in [("train", "cache_text_embeddings")] if train.cache_text_embeddings else cached:
            message = "cannot be combined with train.train_text_encoder"
            yield _finding(location, "config.conflict", message, remedy)
    if 0 < len(cached) < len(process.datasets):
        remedy = "set train.cache_text_embeddings: true for all of them"
        yield _finding(cached[0], "config.conflict", "is set for some datasets and not for others", remedy)


def _check_noise(process: TrainProcess) -> Iterator[Finding]:
    train, predicts = process.train, process.model.prediction_type
    flow = train.noise_scheduler == "flowmatch"
    if flow and train.min_snr_gamma is not None:
        message = "is defined for ddpm noise, not for flowmatch"
        yield _finding(("train", "min_snr_gamma"), "config.conflict", message, "leave it out")
    if predicts is not None and flow != (predicts == "flow"):
        message = f"{predicts} does not go with train.noise_scheduler: {train.noise_scheduler}"
        remedy = f"use {'flow' if flow else 'epsilon or v_prediction'}"
        yield _finding(("model", "prediction_type"), "config.conflict", message, remedy)


def _check_sampler(process: TrainProcess, name: str, sample: SampleConfig | None) -> Iterator[Finding]:
    if sample is None:
        return
    flow = process.train.noise_scheduler == "flowmatch"
    samplers: list[tuple[Location, str]] = [((name, "sampler"), sample.sampler)]
    for index, item in enumerate(sample.samples):
        if item.sampler:
            samplers.append(((name, "samples", index, "sampler"), item.sampler))
    for location, sampler in samplers:
        if sampler not in FLOW_SAMPLERS if flow else sampler == "flowmatch":
            message = f"'{sampler}' cannot sample a {'flow-matching' if flow else 'ddpm'} model"
            remedy = f"use {', '.join(FLOW_SAMPLERS)}" if flow else "use ddim, euler or another"
            yield _finding(location, "config.conflict", message, remedy)


def _check_generate(generate: GenerateConfig) -> Iterator[Finding]:
    if generate.lora_path and not _may_be_hub_id(generate.lora_path):
        yield from _check_file(generate.lora_path, ("generate", "lora_path"))


def _may_be_hub_id(name: str) -> bool:
    """Whether a name can be `owner/repository` on the hub rather than a file here."""
    return name.count("/") == 1 and not name.endswith(".safetensors") and not name.startswith((".", "/", "~"))
