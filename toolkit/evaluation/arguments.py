"""From plain settings, of a command line or a config, to an EvalRequest; everything wrong at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.config_modules.names import DTYPES, EVAL_TIMESTEP_TYPES
from toolkit.data.captions import is_extension
from toolkit.data.dataset_list import is_list
from toolkit.errors import ConfigError, Problem, did_you_mean
from toolkit.paths import OUTPUT_ROOT, is_folder, resolve_path
from toolkit.text import unwritable

MODEL_KEYS = ("name_or_path", "arch", "vae_path", "dtype")
# ai-toolkit's tool reads these too; they say nothing here, or only at their defaults.
MODEL_KEYS_PASSED_OVER = ("low_vram", "quantize", "qtype", "vae_dtype", "te_dtype")
LORA_KEYS = ("inference_lora_path", "lora_path")
MAX_NAME_BYTES = 200  # of a job: file systems take 255, and names of files add to it


def make_request(values: Mapping[str, Any]) -> Any:
    """An EvalRequest. Keys as in tools.eval_dataset. Raises ConfigError."""
    if values["caption_ablation"] == "blank":  # what the comparison with no caption measures anyway
        values = {**values, "caption_ablation": "none", "caption_ablation_compare": True}
    problems: list[Problem] = []
    model = _model(values, problems)
    values = {**values, "lora": values.get("lora") or model.get("lora"), "dtype": model.get("dtype")}
    problems += _wrong(values)
    if problems:
        raise ConfigError(problems)
    # Imported after the checks: a typo is answered before torch is there.
    from toolkit.accelerator import parse_dtype, pick_device
    from toolkit.evaluation.draws import Design
    from toolkit.evaluation.evaluate import Settings
    from toolkit.evaluation.request import EvalRequest

    device = pick_device(values.get("device"))
    dtype = values["dtype"] or ("fp32" if device.type == "cpu" else "bf16")
    out_dir = values.get("out_dir") or OUTPUT_ROOT / "eval" / values["job_name"]
    return EvalRequest(
        dataset_paths=list(values["dataset_path"]),
        model=model["name_or_path"],
        arch=model.get("arch") or "sd15",
        vae_path=model.get("vae_path"),
        out_dir=Path(out_dir).expanduser(),
        job_name=values["job_name"],
        step=values["step"],
        lora=values["lora"],
        lora_multiplier=values.get("lora_multiplier", 1.0),
        against_base=values.get("against_base", False),
        device=device,
        dtype=parse_dtype(dtype),
        settings=Settings(
            design=Design(
                seed=values["seed"],
                timestep_type=values["timestep_type"],
                t_range=tuple(values["t_range"]),
                fixed_noise_std=values.get("fixed_noise_std"),
            ),
            num_draws=values["samples_per_image"],
            batch_size=values["batch_size"],
            ablation=values["caption_ablation"],
            blank=values["caption_ablation_compare"],
            num_others=values["others"],
            target_se=values.get("target_se"),
            target_q=values.get("target_q"),
        ),
        resolution=values.get("eval_resolution"),
        sample_fraction=values["sample_fraction"],
        max_samples=values.get("max_samples"),
        caption_ext=values["caption_ext"],
        default_caption=values.get("default_caption"),
        trigger_word=values.get("trigger_word"),
        rate=values["fdr"],
        edits=bool(values.get("edits")),
        suggest=bool(values.get("suggest")),
        relative_loss=values.get("normalize_loss", True),
        debug_noise=bool(values.get("debug_noise")),
        debug_captions=values["debug_captions"],
        log_conditioning=values["log_conditioning"],
        html=bool(values.get("html")),
    )


# key -> (whether a value is right, what is asked of it)
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("batch_size", "samples_per_image", "max_samples"),
        (lambda value: value >= 1, "must be at least 1"),
    ),
    "eval_resolution": (lambda value: value >= 8, "must be at least 8"),
    **dict.fromkeys(("step", "others"), (lambda value: value >= 0, "must not be negative")),
    **dict.fromkeys(
        ("sample_fraction", "fixed_noise_std"), (lambda value: 0 < value <= 1, "must be in (0, 1]")
    ),
    **dict.fromkeys(("fdr", "target_q"), (lambda value: 0 < value < 1, "must be between 0 and 1")),
    "target_se": (lambda value: value > 0, "must be above 0"),
    "lora_multiplier": (lambda value: abs(value) <= 100, "must be between -100 and 100"),
    "t_range": (lambda value: 0 <= value[0] < value[1] <= 1, "must rise inside 0 and 1"),
    "job_name": (
        lambda value: (
            bool(value)
            and value == Path(value).name
            and value[0] != "."
            and len(os.fsencode(value)) <= MAX_NAME_BYTES
        ),
        f"cannot be a file's name of at most {MAX_NAME_BYTES} bytes",
    ),
    "caption_ext": (is_extension, "must be the end of a file's name, such as .txt"),
}


def _wrong(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Values out of range, settings that need each other, and what is not there."""
    for key, (is_right, message) in _RANGES.items():
        value = values.get(key)
        if value is not None and not is_right(value):
            yield _problem(key, f"{value!r} {message}")
    yield from _unknown(values)
    for key in ("target_se", "target_q"):
        if values.get(key) is not None and not values["caption_ablation_compare"]:
            yield _problem(key, "needs the comparison with the empty caption", "leave it on")
    if values.get("against_base") and not values.get("lora"):
        yield _problem("against_base", "needs a LoRA to compare with the base model", "name one with lora")
    if values.get("apply_inference_lora") and not values.get("lora"):
        yield _problem("apply_inference_lora", "no LoRA is named", "name it in the model_config_file")
    yield from _not_there(values)


def _not_there(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Files and folders that are missing, or there twice."""
    if values.get("lora") and not resolve_path(values["lora"]).is_file():
        yield _problem("lora", f"no such file: {values['lora']}")
    seen: set[str] = set()
    for path in values["dataset_path"]:
        place = resolve_path(path)
        real = os.path.realpath(place)
        if real in seen:
            yield _problem("dataset_path", f"is named twice: {path}", "leave one out")
        seen.add(real)
        # Not Path.is_file, which raises for a name that is too long.
        if not is_folder(place) and not (is_list(place) and os.path.isfile(place)):  # noqa: PTH113
            yield _problem("dataset_path", f"no such folder, nor a .json or .jsonl list: {path}")


def _unknown(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Names that stand for nothing, and what no report can hold."""
    for key in unwritable(values):
        yield _problem(key, "cannot be written as UTF-8")
    name = values["timestep_type"]
    if name not in EVAL_TIMESTEP_TYPES:
        guess = did_you_mean(name, EVAL_TIMESTEP_TYPES)
        hint = f"did you mean '{guess}'?" if guess else f"known: {', '.join(EVAL_TIMESTEP_TYPES)}"
        yield Problem("eval.timestep_type", f"unknown '{name}'; {hint}", key="timestep_type")
    dtype = values["dtype"]
    if dtype is not None and dtype.lower().removeprefix("torch.") not in DTYPES:
        yield _problem("dtype", f"unknown dtype '{dtype}'; known: {', '.join(DTYPES)}")


def _problem(key: str, message: str, remedy: str | None = None) -> Problem:
    return Problem("eval.argument", message, key=key, remedy=remedy)


def _model(values: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """name_or_path, arch, vae_path and dtype from the arguments and the config file, if one is named."""
    model: dict[str, Any] = {}
    file = values.get("model_config_file")
    if file:
        read = _read(file, problems)
        if read is None:
            return model
        with_lora = bool(values.get("apply_inference_lora"))
        for key, value in read.items():
            if key not in MODEL_KEYS + LORA_KEYS:
                if key not in MODEL_KEYS_PASSED_OVER or value not in (None, False, "", "qfloat8"):
                    known = ", ".join(MODEL_KEYS)
                    problems.append(Problem("eval.argument", f"unknown or unsupported key; known: {known}",
                                            file=str(file), key=key))  # fmt: skip
            elif not isinstance(value, str | None):
                problems.append(Problem("eval.argument", f"{value!r} is no text", file=str(file), key=key))
            elif key in MODEL_KEYS:
                model[key] = value
            elif with_lora and value:
                # As in ai-toolkit's tool, a LoRA of the model is left out unless it is asked for.
                model["lora"] = value
    given = {"name_or_path": values.get("model"), "arch": values.get("arch"), "dtype": values.get("dtype")}
    model |= {key: value for key, value in given.items() if value is not None}
    if not model.get("name_or_path"):
        problems.append(_problem("model", "no model is named", "give --model or name_or_path"))
    return model


def _read(file: str, problems: list[Problem]) -> dict[str, Any] | None:
    """The object in a model's config file, or None and a problem more."""
    try:
        read = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(Problem("eval.argument", f"cannot be read: {error}", file=str(file)))
        return None
    if not isinstance(read, dict):
        problems.append(Problem("eval.argument", "must hold one object", file=str(file)))
        return None
    return read
