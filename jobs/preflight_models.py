"""Where the models of a job are, and whether they can be had. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from toolkit.config_modules.job import ModelProcess
from toolkit.config_modules.model import ModelConfig
from toolkit.config_modules.process import VaeProcess
from toolkit.errors import Problem
from toolkit.models.catalogue import find_architecture, other_pipeline, pipeline_architecture
from toolkit.models.file_keys import (
    CLIP_REPO,
    CLIP_TOKENIZER_FILES,
    NO_SAFETENSORS,
    FileLayout,
    without_rest,
)
from toolkit.models.geometry import read_json
from toolkit.models.hub_cache import (
    cached_snapshot,
    is_hub_id,
    loaded_weights,
    missing_parts,
    pipeline_parts,
)
from toolkit.paths import models_root, resolve_model
from toolkit.preflight.report import ModelReport, ProcessReport
from toolkit.preflight.weights import is_cut_off, may_be_pickled, read_header

MODEL_KEY, EXTRAS_KEY = "model.name_or_path", "model.extras_name_or_path"
# What other places of parts must hold: see toolkit/models/shared.
_TRANSFORMER_FILES = ["config.json", "diffusion_pytorch_model*", "transformer/*"]
_VAE_FILES = ["config.json", "*.safetensors", "*.bin", "vae/*"]
_MODEL_FILES = (".safetensors", ".ckpt", ".pt", ".bin")
_ENCODER_FILES = ["tokenizer*", "config.json", "*.safetensors", "text_encoder*/*", "tokenizer*/*"]


def check_models(process: ModelProcess, report: ProcessReport, found: list[Problem], running: bool) -> None:
    """Where the models of a process are; what is wrong with them is added to `found`.

    running: one that cannot be reached now is a problem.
    """
    for name, key, patterns in _models(process.model):
        _check_model(process, name, key, patterns, report, found, running)
    if _wants_tokenizers(process.model):
        check_place(CLIP_REPO, MODEL_KEY, list(CLIP_TOKENIZER_FILES), report, found, running)


def check_named(name: str) -> list[Problem]:
    """Whether what a config names as its model is there and may be one; all else waits for a whole config."""
    found: list[Problem] = []
    check_place(name, MODEL_KEY, None, ProcessReport(""), found, running=False)
    path = resolve_model(name)
    if path is not None and path.is_file():
        found += _check_file(name, MODEL_KEY, path)
    return found


def _models(model: ModelConfig) -> Iterator[tuple[str, str, list[str] | None]]:
    """(name, key, files wanted of a hub repository) of everything that is loaded."""
    yield model.name_or_path, MODEL_KEY, None if model.extras_name_or_path is None else _TRANSFORMER_FILES
    if model.extras_name_or_path is not None:
        wanted = [
            "model_index.json", "scheduler/*",
            *(["vae/*"] if model.vae_path is None else []),
            *(["text_encoder*/*", "tokenizer*/*"] if model.te_name_or_path is None else []),
        ]  # fmt: skip
        yield model.extras_name_or_path, EXTRAS_KEY, wanted
    if model.vae_path is not None:
        yield model.vae_path, "model.vae_path", _VAE_FILES
    if model.te_name_or_path is not None:
        yield model.te_name_or_path, "model.te_name_or_path", _ENCODER_FILES


def _wants_tokenizers(model: ModelConfig) -> bool:
    """Whether the model is a file whose tokenizers are neither named, beside it, nor downloaded already."""
    layout = find_architecture(model.arch).single_file
    path = resolve_model(model.name_or_path)
    if layout is None or path is None or not path.is_file() or model.te_name_or_path is not None:
        return False
    cached = cached_snapshot(CLIP_REPO)
    if cached is not None and any((cached / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return False
    return not all((path.parent / part).is_dir() for part in layout.tokenizers)


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
    elif local is not None and key == EXTRAS_KEY:
        found += _check_extras(process.model, name, local)
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
    """A file that holds no weights, or that cannot be read to its end."""
    if path.suffix == ".safetensors" and read_header(path) is None:
        yield Problem("model.load", f"'{name}': is not a readable .safetensors file", key=key)
    elif path.suffix not in _MODEL_FILES:
        message = f"'{name}': is no model file: its name ends in none of {', '.join(_MODEL_FILES)}"
        yield Problem("model.load", message, key=key)
    elif path.suffix != ".safetensors" and not may_be_pickled(path):
        message = f"'{name}': is no model file: it does not begin as one that torch saved"
        yield Problem("model.load", message, key=key, remedy="download it again")
    yield from _cut_off(name, key, [path])


def _weights_of(folder: Path, without: Sequence[str] = ()) -> list[Path]:
    """The weights that are loaded of a diffusers folder, but for some components."""
    parts = pipeline_parts(read_json(folder / "model_index.json"))
    return [file for part in parts if part not in without for file in loaded_weights(folder / part)]


def _cut_off(name: str, key: str, files: Iterable[Path]) -> Iterator[Problem]:
    for file in files:
        if is_cut_off(file):
            message = f"'{name}': {file.name} in {file.parent} ends too early"
            yield Problem("model.load", message, key=key, remedy="download it again")


def _check_layout(model: ModelConfig, path: Path, layout: FileLayout) -> Iterator[Problem]:
    """A file that by its keys is another architecture's, or that lacks what nothing else names."""
    keys = read_header(path) if path.suffix == ".safetensors" else None
    told = [layout.wrong(keys)] if keys else []
    if layout.alone:
        told += [None if path.suffix == ".safetensors" else NO_SAFETENSORS]
        rest = {"vae": model.vae_path, "text": model.te_name_or_path}
        told += [without_rest(extras=model.extras_name_or_path, **rest)]
    for message, remedy in filter(None, told):
        yield Problem("model.load", f"'{model.name_or_path}': {message}", key=MODEL_KEY, remedy=remedy)


def _check_transformer(name: str, path: Path) -> Iterator[Problem]:
    """A folder that the transformer alone is taken from."""
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    if not (folder / "config.json").is_file():
        message = f"'{name}': holds no transformer: {folder / 'config.json'} is missing"
        yield Problem("model.load", message, key=MODEL_KEY)
    yield from _cut_off(name, MODEL_KEY, loaded_weights(folder))


def _check_extras(model: ModelConfig, name: str, path: Path) -> Iterator[Problem]:
    """A folder that everything beside the transformer is taken from."""
    if path.is_file():
        message = f"'{name}': is a file; a diffusers folder or a hub id is needed"
        yield Problem("model.load", message, key=EXTRAS_KEY)
        return
    elsewhere = ["transformer"]
    elsewhere += [] if model.vae_path is None else ["vae"]
    elsewhere += [] if model.te_name_or_path is None else ["text_encoder", "text_encoder_2"]
    yield from _cut_off(name, EXTRAS_KEY, _weights_of(path, elsewhere))


def _check_autoencoder(name: str, path: Path) -> Iterator[Problem]:
    """A folder that an autoencoder is to be trained from, and that holds none."""
    if not any((path / part / "config.json").is_file() for part in ("", "vae")):
        message = f"'{name}': no autoencoder here: neither vae/config.json nor config.json"
        yield Problem("model.no_vae", message, key=MODEL_KEY)


def _check_single_file(
    model: ModelConfig, name: str, path: Path, layout: FileLayout | None
) -> Iterator[Problem]:
    wrong = list(_check_file(name, MODEL_KEY, path))
    yield from wrong
    if layout is not None and (path.suffix == ".safetensors" or not wrong):
        yield from _check_layout(model, path, layout)


def _check_local(process: ModelProcess, name: str, path: Path) -> Iterator[Problem]:
    """A folder or file that is there, but is not a whole model of the architecture that the config says."""
    if isinstance(process, VaeProcess):
        yield from _check_autoencoder(name, path)
        return
    entry = find_architecture(process.model.arch)
    if path.is_file():
        yield from _check_single_file(process.model, name, path, entry.single_file)
        return
    if process.model.extras_name_or_path is not None:
        yield from _check_transformer(name, path)
        return
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
        yield from _cut_off(name, MODEL_KEY, _weights_of(path))
        for part in missing_parts(path):
            remedy = "to start from random weights set model.from_config: true"
            yield Problem(
                "model.load", f"'{name}': no weights in {path / part}", key=MODEL_KEY, remedy=remedy
            )
