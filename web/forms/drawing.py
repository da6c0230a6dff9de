"""A job that draws pictures with what another job has trained, its previews' settings kept. Torch-free."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from toolkit.config_modules.process import DiffusionProcess, FolderProcess
from toolkit.config_modules.prompt_flags import FLAGS
from toolkit.config_modules.sample import SETTINGS, SampleRequest, make_request
from toolkit.errors import ConfigError
from toolkit.models.catalogue import find_architecture
from web.configs import CheckedConfig, as_text, unreadable
from web.forms.yaml_text import parse
from web.problems import conflict

_EXTRAS = "extras_name_or_path"
_FLAG_OF = {setting: flag for flag, (setting, _) in FLAGS.items()}  # of two flags the longer name


@lru_cache(maxsize=256)
def drawable(text: str, number: int) -> tuple[str, ...]:
    """The kinds of results of run `number` of a config that draw pictures (web/runs/results.py), if any do.

    No autoencoder and no embedding; a LoRA is a file, a model also a folder. Told by the text alone, as pages
    that are drawn again and again ask for it; `drawing_text` reads the config.
    """
    if unreadable(text) is not None:
        return ()
    try:
        listed = parse(text)["config"]["process"]
        runs = [each for each in listed if "training_folder" in each]
        run = (runs or listed)[number - 1]
        if run.get("type") == "vae" or run.get("embedding") is not None:
            return ()
        return ("model", "folder") if run.get("network") is None else ("model",)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError):
        return ()


def drawing_text(
    text: str, found: CheckedConfig, number: int, trained: Path, *, name: str, output_root: Path
) -> str:
    """The config of a job `generate` called `name`, for the model that run `number` of a config has saved.

    text, found: the config of the training, and what it says. trained: a LoRA, or a whole model where no
    network was trained. Raises ApiError 409 for what draws no pictures, and for a config that cannot be read.
    """
    if found.loaded is None:
        told = "; ".join(f"{problem}" for problem in found.problems[:3])
        raise conflict(f"the config that trained it cannot be read any more: {told}")
    runs = [each for each in enumerate(found.loaded.config.process) if isinstance(each[1], FolderProcess)]
    index, process = runs[number - 1] if number <= len(runs) else (0, None)
    if not isinstance(process, DiffusionProcess) or getattr(process, "embedding", None) is not None:
        raise conflict("job generate draws with models and LoRAs, not with autoencoders and embeddings")
    model: dict[str, Any] = dict(parse(text)["config"]["process"][index]["model"])
    if process.network is None:
        model = _whole(model, process.model.arch, trained)
    lora = {} if process.network is None else {"lora_path": str(trained)}
    section: dict[str, Any] = {"type": "to_folder", "output_folder": str(output_root / name)}
    section |= {"device": process.device} if process.device is not None else {}
    section |= {"dtype": process.train.dtype, "model": model}
    listed = [section | {"generate": generate | lora} for generate in _sections(_previews(process))]
    return as_text({"job": "generate", "config": {"name": name, "process": listed}})


def _whole(model: dict[str, Any], arch: str, trained: Path) -> dict[str, Any]:
    """The section of a model that was trained whole: its name says no architecture, a file may be a part."""
    base, said = model["name_or_path"], {key: value for key, value in model.items() if value is not None}
    said.pop("from_config", None)  # it has weights now
    if trained.is_dir():  # with text encoders of its own, perhaps trained
        said.pop("te_name_or_path", None)
    elif f"model.{_EXTRAS}" in find_architecture(arch).own_keys:
        said.setdefault(_EXTRAS, base)
    return {"arch": arch, **said, "name_or_path": str(trained)}


def _previews(process: DiffusionProcess) -> list[SampleRequest]:
    """What the training draws; where it draws nothing, its trigger word with the settings it would have."""
    sample, trigger = process.sample, process.trigger_word
    if not sample.samples and not sample.prompts:
        sample = sample.model_copy(update={"prompts": [trigger or "a photo"]})
    return sample.requests(trigger)


def _sections(requests: list[SampleRequest]) -> list[dict[str, Any]]:
    """`generate` sections: settings as of their first preview, what others have otherwise as flags.

    A preview that no flags tell apart from the first (another sampler, a negative prompt that reads as flags)
    begins another section. Raises ApiError 409 for a prompt that itself reads as flags.
    """
    sections: list[tuple[dict[str, Any], list[str]]] = []
    for request in requests:
        for first, prompts in sections:
            others = {key: getattr(request, key) for key in SETTINGS if getattr(request, key) != first[key]}
            flags = [f"--{_FLAG_OF[key]} {value}" for key, value in others.items() if key in _FLAG_OF]
            prompt = " ".join([request.prompt, *flags])
            if _resolved(prompt, first) == request:
                prompts.append(prompt)
                break
        else:
            first = {key: getattr(request, key) for key in SETTINGS}
            if _resolved(request.prompt, first) != request:
                raise conflict(f"the preview {request.prompt!r} reads as flags; write the job by hand")
            sections.append((first, [request.prompt]))
    return [{"prompts": prompts, **first} for first, prompts in sections]


def _resolved(prompt: str, settings: dict[str, Any]) -> SampleRequest | None:
    """What a prompt in a section with these settings draws; None if it is none."""
    try:
        return make_request(prompt, settings)
    except ConfigError:
        return None
