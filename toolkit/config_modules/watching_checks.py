"""Checks of what watches a run: validation, trackers and the sheet to choose from. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from toolkit.config_modules.base import Location, Section
from toolkit.config_modules.process import DiffusionProcess, RunProcess, TrainProcess
from toolkit.data.dataset_list import is_list
from toolkit.paths import resolve_path

Finding = tuple[Location, str, str, str | None]


def check_watching(process: Any) -> Iterator[Finding]:
    """What is asked of a run's watchers and cannot be had."""
    if isinstance(process, RunProcess):
        yield from _check_packages(process)
    if isinstance(process, TrainProcess):
        yield from _check_validation(process)
    elif isinstance(process, DiffusionProcess) and process.train.validation_config is not None:
        message = "means nothing here: a slider has no pictures that it should come near to"
        yield ("train", "validation_config"), "config.conflict", message, "leave it out"
    if isinstance(process, DiffusionProcess) and process.sample.keeper_sheet:
        yield from _check_keeper_sheet(process)


def _check_packages(process: RunProcess) -> Iterator[Finding]:
    wanted: list[tuple[Location, str, bool]] = [
        (("log_dir",), "tensorboard", process.log_dir is not None),
        (("logging", "use_wandb"), "wandb", process.logging.use_wandb),
    ]
    for location, package, asked in wanted:
        if asked and find_spec(package) is None:
            message = f"needs the package {package}, which is not installed"
            yield location, "config.missing_package", message, f"pip install {package}, or leave it out"


def _check_validation(process: TrainProcess) -> Iterator[Finding]:
    section, legacy = process.validation, process.train.validation_config
    if section is not None and legacy is not None:
        message = "says the same as the section validation"
        yield ("train", "validation_config"), "config.conflict", message, "leave one of them out"
    held_out: list[tuple[Location, Section]] = []
    if section is not None and len(section.sources) != 1:
        said = " and ".join(section.sources)
        message = f"has {said}: one source is enough" if said else "names no pictures"
        remedy = "give one of folder_path, fraction and items"
        yield ("validation",), "config.conflict" if said else "config.missing_key", message, remedy
    if section is not None:
        held_out += [(("validation", "items", i), item) for i, item in enumerate(section.items)]
        folder = section.folder_path and resolve_path(section.folder_path)
        if folder and not folder.is_dir() and not (is_list(folder) and folder.is_file()):
            message = f"folder {section.folder_path} does not exist"
            yield ("validation", "folder_path"), "config.dataset_folder", message, None
    if legacy is not None:
        place: Location = ("train", "validation_config", "validation_items")
        held_out += [((*place, i), item) for i, item in enumerate(legacy.validation_items)]
    for location, item in held_out:
        name = getattr(item, "image_path", "")
        if not resolve_path(name).is_file():
            yield (*location, "image_path"), "config.missing_file", f"file {name} does not exist", None


def _check_keeper_sheet(process: DiffusionProcess) -> Iterator[Finding]:
    place: Location = ("sample", "keeper_sheet")
    if process.network is None:
        message = "draws saves of a network at several strengths, and this run trains none"
        yield place, "config.conflict", message, "leave it out"
    elif isinstance(process, TrainProcess) and process.embedding is not None:
        message = "draws saves of a network alone, and this run also learns a word"
        yield place, "config.conflict", message, "leave it out"
    elif not process.sample.samples and not process.sample.prompts:
        yield place, "config.no_prompts", "has nothing to draw", "list sample.prompts"
