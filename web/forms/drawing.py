"""A job that draws pictures with what another job has trained, its previews' settings kept. Torch-free."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from toolkit.config_modules.process import DiffusionProcess, FolderProcess
from toolkit.config_modules.prompt_flags import FLAGS
from toolkit.config_modules.sample import SampleRequest
from toolkit.models.catalogue import find_architecture
from web.configs import CheckedConfig, as_text, unreadable
from web.forms.yaml_text import parse
from web.problems import conflict

_SETTINGS = (
    "neg", "sampler", "width", "height", "seed", "guidance_scale", "guidance_rescale", "sample_steps",
    "network_multiplier",
)  # fmt: skip
EXTRAS = "model.extras_name_or_path"
_FLAG_OF = {setting: flag for flag, (setting, _) in FLAGS.items()}  # of two flags the longer name


@lru_cache(maxsize=256)
def can_draw(text: str, number: int) -> bool:
    """Whether what run `number` of a config saves seems to draw pictures: no autoencoder, no embedding."""
    if unreadable(text) is not None:
        return False
    try:
        listed = parse(text)["config"]["process"]
        runs = [each for each in listed if "training_folder" in each]
        run = (runs or listed)[number - 1]
        return run.get("type") != "vae" and run.get("embedding") is None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError):
        return False


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
        raise conflict(f"{trained.name} is not a model or LoRA that draws pictures")
    model: dict[str, Any] = dict(parse(text)["config"]["process"][index]["model"])
    generate = _generate(process.sample.requests(process.trigger_word), process.trigger_word)
    if process.network is not None:
        generate["lora_path"] = str(trained)
    else:
        model = _whole(model, process.model.arch, trained)
    section: dict[str, Any] = {"type": "to_folder", "output_folder": str(output_root / name)}
    section |= {"device": process.device} if process.device is not None else {}
    section |= {"dtype": process.train.dtype, "model": model, "generate": generate}
    return as_text({"job": "generate", "config": {"name": name, "process": [section]}})


def _whole(model: dict[str, Any], arch: str, trained: Path) -> dict[str, Any]:
    """The section of a model that was trained whole: its name says no architecture, a file may be a part."""
    base, said = model["name_or_path"], {key: value for key, value in model.items() if value is not None}
    if trained.is_file() and EXTRAS in find_architecture(arch).own_keys:
        said.setdefault(EXTRAS.partition(".")[2], base)
    return {"arch": arch, **said, "name_or_path": str(trained)}


def _generate(requests: list[SampleRequest], trigger_word: str | None) -> dict[str, Any]:
    """The section of that name: settings as of the first preview, what others have otherwise as flags."""
    if not requests:
        return {"prompts": [trigger_word or "a photo"]}
    first = {key: getattr(requests[0], key) for key in _SETTINGS}
    prompts = []
    for request in requests:
        others = {key: getattr(request, key) for key in _SETTINGS if getattr(request, key) != first[key]}
        flags = [f"--{_FLAG_OF[key]} {value}" for key, value in others.items() if key in _FLAG_OF]
        prompts.append(" ".join([request.prompt, *flags]))
    return {"prompts": prompts, **first}
