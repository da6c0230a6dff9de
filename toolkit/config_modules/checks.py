"""Checks across sections: settings that are fine alone and wrong together. Torch-free.

Each check yields (location in the process, code, message, remedy); the loader adds file and line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.config_modules.architecture_checks import check_architecture, unread_sample_settings
from toolkit.config_modules.base import Location, Section, is_set
from toolkit.config_modules.caption_checks import check_captions, unread_captions
from toolkit.config_modules.documents import dotted
from toolkit.config_modules.embedding_checks import check_embedding, unread_beside_embedding
from toolkit.config_modules.explain import shown
from toolkit.config_modules.generate import GenerateConfig
from toolkit.config_modules.job import AnyProcess
from toolkit.config_modules.loss_checks import check_losses, check_weights, unread_settings
from toolkit.config_modules.names import FLOW_SAMPLERS
from toolkit.config_modules.network_checks import check_network, unread_network_settings
from toolkit.config_modules.optimizer_checks import advice, check_loop, check_rates
from toolkit.config_modules.picture_checks import check_pictures, unread_by_pictures
from toolkit.config_modules.process import (
    CaptionProcess,
    ConceptSliderProcess,
    DiffusionProcess,
    EvalProcess,
    GenerateProcess,
    SliderProcess,
    TrainProcess,
    VaeProcess,
)
from toolkit.config_modules.sampler_checks import check_steps, known_objective, samplers
from toolkit.config_modules.slider_checks import check_slider, unread_by_slider
from toolkit.config_modules.watching_checks import check_watching
from toolkit.data.dataset_list import is_list
from toolkit.errors import ConfigError, Problem, did_you_mean
from toolkit.paths import DATASETS_ROOT, resolve_path

Finding = tuple[Location, str, str, str | None]

# What training an autoencoder has no use for: an error where it would change what the user gets, else a note.
_OWN_VAE = "name the autoencoder itself in name_or_path"
_NO_DENOISER = "an autoencoder's training has no denoiser and no text encoder"
_LATENTS_CHANGE = "an autoencoder in training changes its latents, so none can be kept"
_VAE_MODEL_REFUSED = {
    "vae_path": _OWN_VAE,
    "te_name_or_path": _NO_DENOISER,
    "extras_name_or_path": _NO_DENOISER,
    "use_flux_cfg": _NO_DENOISER,
    "dtype": "all weights learn, in float32; train.dtype is the precision of the forward pass",
    "is_v_pred": _NO_DENOISER,
    "prediction_type": _NO_DENOISER,
}
_WHOLE_PICTURES = "an autoencoder learns whole pictures, and sees no others beside them"
_VAE_DATASET_REFUSED = {
    "cache_latents": _LATENTS_CHANGE,
    "cache_latents_to_disk": _LATENTS_CHANGE,
} | dict.fromkeys(
    ("mask_path", "alpha_mask", "control_path", "control_path_1", "control_path_2", "control_path_3"),
    _WHOLE_PICTURES,
)
_FOLDER_KEYS = (
    "folder_path", "dataset_path", "mask_path", "control_path", "control_path_1", "control_path_2",
    "control_path_3",
)  # fmt: skip
_VAE_DATASET_IDLE = (
    "caption_ext", "default_caption", "trigger_word", "caption_dropout_rate", "cache_text_embeddings",
    "is_reg", "use_short_captions", "replacements", "random_triggers", "random_triggers_max",
    "token_dropout_rate", "shuffle_tokens", "keep_tokens", "caption_variants",
)  # fmt: skip


def _finding(location: Location, code: str, message: str, remedy: str | None = None) -> Finding:
    return location, code, message, remedy


def check_process(process: AnyProcess) -> Iterator[Finding]:
    """Everything wrong with a process whose sections are right one by one."""
    if isinstance(process, CaptionProcess):
        yield from _check_captioning(process)
        return
    yield from check_architecture(process)
    yield from check_watching(process)
    if isinstance(process, DiffusionProcess | VaeProcess):
        yield from check_loop(process.train)
        yield from check_pictures(process)
    if isinstance(process, DiffusionProcess):
        yield from _check_trained_parts(process)
        yield from _check_text_cache(process)
        yield from check_rates(process)
        yield from check_losses(process)
        yield from check_network(process)
        objective = known_objective(process.model) or ("flow" if _says_flow(process) else "epsilon")
        yield from _check_objective(process, objective)
        yield from check_steps(process, flow=objective == "flow" or _says_flow(process))
        yield from check_slider(process)
        if isinstance(process, TrainProcess):
            yield from check_embedding(process)
            yield from check_captions(process)
    else:
        yield from _check_untrained(process)


def _check_untrained(process: VaeProcess | GenerateProcess | EvalProcess) -> Iterator[Finding]:
    """What is wrong with a process that trains no diffusion model."""
    if isinstance(process, VaeProcess):
        yield from _check_unread(process)
        for index, source in enumerate(process.sample.sources):
            yield from _check_file(source, ("sample", "sources", index))
    elif isinstance(process, GenerateProcess):
        yield from _check_generate(process.generate)
        flow = known_objective(process.model) == "flow" or process.generate.sampler == "flowmatch"
        yield from check_steps(process, flow=flow)
    else:
        for index, folder in enumerate(process.eval.dataset_path):
            yield from _check_folder(folder, ("eval", "dataset_path", index))
        if process.eval.lora is not None:
            yield from _check_file(process.eval.lora, ("eval", "lora"))


def _check_captioning(process: CaptionProcess) -> Iterator[Finding]:
    """Captions go beside pictures, so they need folders."""
    for index, folder in enumerate(process.caption.dataset_path):
        if is_list(resolve_path(folder)):
            place = ("caption", "dataset_path", index)
            yield _finding(place, "config.dataset_folder", "is a list; captions go into folders of pictures")
        else:
            yield from _check_folder(folder, ("caption", "dataset_path", index))


def check_objective(objective_name: str, section: DiffusionProcess) -> None:
    """Compare what a loaded model predicts (epsilon, v_prediction or flow) with what the config asks of it.

    Raises ConfigError with everything that does not go together.
    """
    findings = _check_objective(section, objective_name)
    problems = [
        Problem(code, message, key=dotted(location), remedy=remedy)
        for location, code, message, remedy in findings
    ]
    if problems:
        raise ConfigError(problems)


def process_notes(process: AnyProcess) -> list[str]:
    """A line for each setting that this process does not read, where that harms nothing."""
    if isinstance(process, CaptionProcess):
        return []
    unread = unread_sample_settings(process)
    if isinstance(process, VaeProcess):
        unread |= _unread_by_vae(process)
    if isinstance(process, DiffusionProcess | VaeProcess):
        unread |= unread_by_pictures(process)
    if isinstance(process, ConceptSliderProcess):
        unread |= unread_by_slider(process)
    if isinstance(process, SliderProcess):
        unread["strict",] = process, "this slider needs no pictures"
    if isinstance(process, TrainProcess):
        unread |= unread_beside_embedding(process) | unread_captions(process)
    if isinstance(process, DiffusionProcess):
        if process.first_sample is not None:
            reason = "these are drawn once, before the first step"
            unread["first_sample", "sample_every"] = process.first_sample, reason
        unread |= {("train", key): (process.train, why) for key, why in unread_settings(process).items()}
        if process.network is not None:
            network, idle = process.network, unread_network_settings(process)
            unread |= {("network", key): (network, why) for key, why in idle.items()}
    told = [
        f"{dotted(location)}: {shown(getattr(section, str(location[-1])))} has no effect: {reason}"
        for location, (section, reason) in unread.items()
        if is_set(section, str(location[-1]))
    ]
    return told + advice(process.train) if isinstance(process, DiffusionProcess | VaeProcess) else told


def _unread_by_vae(process: VaeProcess) -> dict[Location, tuple[Section, str]]:
    reason = "an autoencoder's training reads no captions"
    return {
        ("datasets", index, key): (dataset, reason)
        for index, dataset in enumerate(process.datasets)
        for key in _VAE_DATASET_IDLE
    }


def check_folders(raw: Mapping[str, Any]) -> Iterator[Finding]:
    """Dataset folders that are not there; takes raw data, so that it runs beside other errors."""
    entries = raw.get("datasets")
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        for key in _FOLDER_KEYS:
            named = entry.get(key) if isinstance(entry, Mapping) else None
            for folder in named if isinstance(named, list) else [named]:
                if isinstance(folder, str) and folder:
                    yield from _check_folder(folder, ("datasets", index, key))


def _check_folder(folder: str, location: Location) -> Iterator[Finding]:
    path = resolve_path(folder)
    if path.is_dir() or (is_list(path) and path.is_file()):
        return
    if is_list(path):
        message, remedy = f"file {folder} does not exist", f"relative to {Path.cwd()}"
    elif path.exists():
        remedy = "give the folder it lies in, or a .json file that lists pictures"
        message = f"{folder} is a file"
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


def _check_trained_parts(process: DiffusionProcess) -> Iterator[Finding]:
    train = process.train
    only_embedding = isinstance(process, TrainProcess) and process.embedding and not process.network
    if not train.train_unet and not train.train_text_encoder and not only_embedding:
        remedy = "set train_unet or train_text_encoder to true"
        yield _finding(("train", "train_unet"), "config.nothing_to_train", "nothing would be trained", remedy)
    if process.network and process.save.save_format == "diffusers":
        message = "diffusers is for full models; a network is one file"
        yield _finding(("save", "save_format"), "config.conflict", message, "leave it out")


def _check_text_cache(process: DiffusionProcess) -> Iterator[Finding]:
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


def _says_flow(process: DiffusionProcess) -> bool:
    return process.train.noise_scheduler == "flowmatch"


def _check_objective(process: DiffusionProcess, objective: str) -> Iterator[Finding]:
    """Settings against what the model predicts."""
    flow, says_flow = objective == "flow", _says_flow(process)
    if flow != says_flow:
        yield _noise_conflict(process, objective)
    yield from check_weights(process, "flow" if says_flow else objective)
    for location, sampler in samplers(process):
        if flow != says_flow and sampler == "flowmatch":
            continue  # it follows from the noise scheduler, which has been told
        if sampler not in FLOW_SAMPLERS if flow else sampler == "flowmatch":
            message = f"'{sampler}' cannot sample a {'flow-matching' if flow else 'ddpm'} model"
            remedy = f"use {', '.join(FLOW_SAMPLERS)}" if flow else "use ddim, euler or another"
            yield _finding(location, "config.conflict", message, remedy)


def _noise_conflict(process: DiffusionProcess, objective: str) -> Finding:
    noise = process.train.noise_scheduler
    flow = _says_flow(process)
    if process.model.prediction_type is not None:
        message = f"{objective} does not go with train.noise_scheduler: {noise}"
        remedy = f"use {'flow' if flow else 'epsilon or v_prediction'}"
        return _finding(("model", "prediction_type"), "config.conflict", message, remedy)
    anew = "model.prediction_type: flow to train it anew as a flow model"
    remedy = f"set noise_scheduler: ddpm, or {anew}" if flow else "set noise_scheduler: flowmatch"
    message = f"{noise} does not go with this model, which predicts {objective}"
    return _finding(("train", "noise_scheduler"), "config.conflict", message, remedy)


def _check_unread(process: VaeProcess) -> Iterator[Finding]:
    """Settings that mean nothing to an autoencoder and would be missed."""
    sections: list[tuple[Location, Section, Mapping[str, str]]] = [
        (("model",), process.model, _VAE_MODEL_REFUSED),
        *((("datasets", index), each, _VAE_DATASET_REFUSED) for index, each in enumerate(process.datasets)),
    ]
    for location, section, refused in sections:
        for key, reason in refused.items():
            if is_set(section, key) and not (key == "prediction_type" and process.model.is_v_pred):
                message = f"{shown(getattr(section, key))} means nothing here: {reason}"
                yield _finding((*location, key), "config.conflict", message, "leave it out")
    if "save_format" in process.save.model_fields_set and process.save.save_format != "diffusers":
        message = "an autoencoder is always saved as a diffusers folder"
        yield _finding(("save", "save_format"), "config.conflict", message, "leave it out")


def _check_generate(generate: GenerateConfig) -> Iterator[Finding]:
    if generate.lora_path and not _may_be_hub_id(generate.lora_path):
        yield from _check_file(generate.lora_path, ("generate", "lora_path"))


def _may_be_hub_id(name: str) -> bool:
    """Whether a name can be `owner/repository` on the hub rather than a file here."""
    return name.count("/") == 1 and not name.endswith(".safetensors") and not name.startswith((".", "/", "~"))
