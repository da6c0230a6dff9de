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
from toolkit.config_modules.process import GenerateProcess, TrainProcess, VaeProcess
from toolkit.config_modules.sample import SampleConfig
from toolkit.errors import did_you_mean
from toolkit.paths import DATASETS_ROOT, resolve_path

Finding = tuple[Location, str, str, str | None]


def check_process(process: AnyProcess) -> Iterator[Finding]:
    """Everything wrong with a process whose sections are right one by one."""
    if isinstance(process, TrainProcess):
        yield from _check_trained_parts(process)
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
        yield location, "config.dataset_folder", f"{folder} is a file", "give the folder it lies in"
        return
    siblings = {entry.name: entry for entry in _folders(path.parent)} | {
        e.name: e for e in _folders(DATASETS_ROOT)
    }
    guess = did_you_mean(path.name, siblings)
    near = f"did you mean {siblings[guess]}?" if guess else f"in the working folder {Path.cwd()}"
    yield location, "config.dataset_folder", f"folder {folder} does not exist", near


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(entry for entry in parent.iterdir() if entry.is_dir())
    except OSError:
        return []


def _check_file(name: str, location: Location) -> Iterator[Finding]:
    if not resolve_path(name).is_file():
        yield location, "config.file", f"file {name} does not exist", None


def _check_trained_parts(process: TrainProcess) -> Iterator[Finding]:
    train = process.train
    if not train.train_unet and not train.train_text_encoder:
        yield (
            ("train", "train_unet"), "config.nothing_to_train", "nothing would be trained",
            "set train_unet or train_text_encoder to true",
        )  # fmt: skip
    if train.train_text_encoder:
        remedy = "turn one of them off: cached embeddings cannot follow an encoder in training"
        cached: list[Location] = [
            ("datasets", index, "cache_text_embeddings")
            for index, dataset in enumerate(process.datasets)
            if dataset.cache_text_embeddings
        ]
        for location in [("train", "cache_text_embeddings")] if train.cache_text_embeddings else cached:
            yield location, "config.conflict", "cannot be combined with train.train_text_encoder", remedy
    if len({dataset.cache_text_embeddings for dataset in process.datasets}) > 1:
        yield (
            ("datasets",), "config.conflict", "some have cache_text_embeddings and some do not",
            "set train.cache_text_embeddings: true for all of them",
        )  # fmt: skip
    if process.network and process.save.save_format == "diffusers":
        yield (
            ("save", "save_format"), "config.conflict", "diffusers is for full models; a network is one file",
            "leave it out",
        )  # fmt: skip


def _check_noise(process: TrainProcess) -> Iterator[Finding]:
    train, predicts = process.train, process.model.prediction_type
    flow = train.noise_scheduler == "flowmatch"
    if flow and train.min_snr_gamma is not None:
        yield (
            ("train", "min_snr_gamma"), "config.conflict", "is defined for ddpm noise, not for flowmatch",
            "leave it out",
        )  # fmt: skip
    if predicts is not None and flow != (predicts == "flow"):
        wanted = "flow" if flow else "epsilon or v_prediction"
        yield (
            ("model", "prediction_type"), "config.conflict",
            f"{predicts} does not go with train.noise_scheduler: {train.noise_scheduler}", f"use {wanted}",
        )  # fmt: skip


def _check_sampler(process: TrainProcess, name: str, sample: SampleConfig | None) -> Iterator[Finding]:
    flow = process.train.noise_scheduler == "flowmatch"
    samplers: dict[Location, str] = (
        {}
        if sample is None
        else {("sampler",): sample.sampler}
        | {("samples", i, "sampler"): item.sampler for i, item in enumerate(sample.samples) if item.sampler}
    )
    for location, sampler in samplers.items():
        if flow != (sampler == "flowmatch"):
            kind = "a flow-matching" if flow else "a ddpm"
            remedy = "use flowmatch" if flow else "use ddim, euler or another of the ddpm family"
            yield (name, *location), "config.conflict", f"'{sampler}' cannot sample {kind} model", remedy


def _check_generate(generate: GenerateConfig) -> Iterator[Finding]:
    if generate.lora_path and not _may_be_hub_id(generate.lora_path):
        yield from _check_file(generate.lora_path, ("generate", "lora_path"))


def _may_be_hub_id(name: str) -> bool:
    """Whether a name can be `owner/repository` on the hub rather than a file here."""
    return name.count("/") == 1 and not name.endswith(".safetensors") and not name.startswith((".", "/", "~"))
