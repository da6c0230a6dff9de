"""Where the models of a job are, and whether they can be had. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from toolkit.config_modules.job import ModelProcess
from toolkit.config_modules.model import ModelConfig
from toolkit.config_modules.process import VaeProcess
from toolkit.errors import Problem
from toolkit.models.catalogue import find_architecture, other_pipeline, pipeline_architecture
from toolkit.models.geometry import read_json
from toolkit.models.hub_cache import is_hub_id, missing_parts
from toolkit.paths import models_root, resolve_model
from toolkit.preflight.report import ModelReport, ProcessReport
from toolkit.preflight.weights import is_cut_off, read_header

MODEL_KEY = "model.name_or_path"
# What other places of parts must hold: see toolkit/models/shared.
_VAE_FILES = ["config.json", "*.safetensors", "*.bin", "vae/*"]
_ENCODER_FILES = ["tokenizer*", "config.json", "*.safetensors", "text_encoder*/*", "tokenizer*/*"]


def check_models(process: ModelProcess, report: ProcessReport, found: list[Problem], running: bool) -> None:
    """Where the models of a process are; what is wrong with them is added to `found`.

    running: one that cannot be reached now is a problem.
    """
    for name, key, patterns in _models(process.model):
        _check_model(process, name, key, patterns, report, found, running)


def _models(model: ModelConfig) -> Iterator[tuple[str, str, list[str] | None]]:
    """(name, key, files wanted of a hub repository) of everything that is loaded."""
    yield model.name_or_path, MODEL_KEY, None
    if model.vae_path is not None:
        yield model.vae_path, "model.vae_path", _VAE_FILES
    if model.te_name_or_path is not None:
        yield model.te_name_or_path, "model.te_name_or_path", _ENCODER_FILES


def _check_model(  # noqa: PLR0917 - where to look, and where to put what is found
    process: ModelProcess,
    name: str,
    key: str,
    patterns: list[str] | None,
    report: ProcessReport,
    found: list[Problem],
    running: bool,
) -> None:
    """Where a model is, whether it can be had, and whether it is what the config says."""
    local = resolve_model(name)
    if local is None and isinstance(process, VaeProcess) and key == MODEL_KEY:
        message = f"no such folder or file: {name}"
        found.append(Problem("model.not_found", message, key=key))
        return
    check_place(name, key, patterns, report, found, running)
    if local is not None and key == MODEL_KEY:
        found += _check_local(process, name, local)
    elif local is not None:
        found += _check_part(name, key, local)


def check_place(  # noqa: PLR0917 - as above
    name: str,
    key: str,
    patterns: list[str] | None,
    report: ProcessReport,
    found: list[Problem],
    running: bool,
) -> None:
    """Where a model is, and whether it can be had."""
    if resolve_model(name) is not None:
        report.models.append(ModelReport(name, key, "local", 0))
        return
    if not is_hub_id(name):
        where = f"looked in the working folder and in {models_root()}"
        message = f"'{name}': no such file or folder, and not a hub id"
        found.append(Problem("model.load", message, key=key, remedy=where))
        return
    from toolkit.preflight.hub_access import ask_hub, has_token

    answer = ask_hub(name, key=key, patterns=patterns)
    report.models.append(ModelReport(name, key, answer.where, answer.download_bytes))
    if answer.problem is not None and (answer.certain or running):
        found.append(answer.problem)
    elif answer.problem is not None:
        report.notes.append(f"{key}: {answer.problem.message}; a run will need it")
    if answer.gated and answer.problem is None:
        report.notes.append(f"{key}: '{name}' is gated, and your token has access to it")
    if answer.where == "hub" and not has_token():
        report.notes.append("no HF_TOKEN is set: downloads work, at the hub's lower rate for guests")


def _check_part(name: str, key: str, path: Path) -> Iterator[Problem]:
    """A folder or file that an autoencoder or text encoders should come from, and that holds no weights."""
    if path.is_file():
        yield from _check_file(name, key, path)
        return
    folders = [path, path / ("vae" if key == "model.vae_path" else "text_encoder")]
    if not any(each.suffix in (".safetensors", ".bin") for folder in folders for each in folder.glob("*")):
        yield Problem("model.load", f"'{name}': no weights in {path}", key=key)


def _check_file(name: str, key: str, path: Path) -> Iterator[Problem]:
    """A file of weights that cannot be read, or not to its end."""
    if path.suffix == ".safetensors" and read_header(path) is None:
        yield Problem("model.load", f"'{name}': is not a readable .safetensors file", key=key)
    yield from _cut_off(name, key, [path])


def _cut_off(name: str, key: str, files: Iterable[Path]) -> Iterator[Problem]:
    for file in files:
        if is_cut_off(file):
            message = f"'{name}': {file.name} in {file.parent} ends too early"
            yield Problem("model.load", message, key=key, remedy="download it again")


def _check_local(process: ModelProcess, name: str, path: Path) -> Iterator[Problem]:
    """A folder or file that is there, but is not a whole model of the architecture that the config says."""
    if isinstance(process, VaeProcess):
        return
    if path.is_file():
        yield from _check_file(name, MODEL_KEY, path)
        return
    entry = find_architecture(process.model.arch)
    index = path / "model_index.json"
    if not index.is_file():
        if not process.model.from_config:
            message = f"'{name}': is not a diffusers folder: {index} is missing"
            yield Problem("model.load", message, key=MODEL_KEY, remedy="or name a .safetensors file")
        return
    found = str(read_json(index).get("_class_name", ""))
    other = pipeline_architecture(found)
    if other is not None and other.name != entry.name:
        message, remedy = other_pipeline(found, entry.title)
        yield Problem("model.load", f"'{name}': {message}", key=MODEL_KEY, remedy=remedy)
    elif not process.model.from_config:
        yield from _cut_off(name, MODEL_KEY, sorted(path.glob("*/*.safetensors")))
        for part in missing_parts(path):
            remedy = "to start from random weights set model.from_config: true"
            yield Problem(
                "model.load", f"'{name}': no weights in {path / part}", key=MODEL_KEY, remedy=remedy
            )
