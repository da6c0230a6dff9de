"""The configs of ai-toolkit's jobs, as JSON in its database and as YAML in run folders. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from web.configs import MAX_BYTES, MOST_STEPS, as_text, unreadable
from web.models import is_torn

_ORDERED = "tag:yaml.org,2002:python/object/apply:collections.OrderedDict"
FILES = ("config.yaml", ".job_config.json")  # the first is what the trainer was given


class _Loader(yaml.SafeLoader):
    """Safe, and able to read an OrderedDict as PyYAML writes one: the pairs in a list in a list."""


def _ordered(loader: yaml.SafeLoader, node: yaml.Node) -> dict[str, Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise ValueError("an ordered mapping without its pairs")
    pairs = loader.construct_sequence(node, deep=True)
    return {str(key): value for key, value in (pairs[0] if pairs else [])}


_Loader.add_constructor(_ORDERED, _ordered)


class BadConfig(ValueError):
    """Why a config cannot be imported, in a few words."""


def from_json(text: str) -> dict[str, Any]:
    """The config in a column job_config. Raises BadConfig."""
    return _parsed(text, json.loads, "JSON")


def from_folder(folder: Path) -> dict[str, Any] | None:
    """The config in a run folder, or None if there is none. Links are not followed. Raises BadConfig."""
    for name in FILES:
        path = folder / name
        if path.is_symlink() or not path.is_file():
            continue
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BadConfig(f"{name} is larger than {MAX_BYTES // 1024} KiB ({size} bytes)")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadConfig(f"{name} cannot be read: {error}") from None
        read = json.loads if path.suffix == ".json" else _read_yaml
        return _parsed(text, read, name)
    return None


def _read_yaml(text: str) -> Any:
    problem = unreadable(text)  # JSON has no aliases that could swell
    if problem is not None:
        raise BadConfig(f"as YAML {problem.message}")
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader with one constructor more


def _parsed(text: str, read: Callable[[str], Any], what: str) -> dict[str, Any]:
    try:
        data = read(text)
        torn = is_torn(data)
    except BadConfig:
        raise
    except RecursionError:
        raise BadConfig(f"{what} is nested too deeply") from None
    except (ValueError, TypeError, LookupError, yaml.YAMLError) as error:
        lines = str(error).split("\n")
        raise BadConfig(f"{what} cannot be read: {lines[0][:200]}") from None
    if torn:
        raise BadConfig(f"{what} holds half of a letter (a lone surrogate)")
    if not isinstance(data, dict):
        raise BadConfig(f"{what} holds no mapping with job and config")
    return data


def name_in(config: dict[str, Any] | None) -> str | None:
    """config.name, if it is a text."""
    body = (config or {}).get("config")
    name = body.get("name") if isinstance(body, dict) else None
    return name if isinstance(name, str) else None


def steps_in(config: dict[str, Any]) -> int | None:
    """How many steps its first process trains, as far as it says."""
    train = _first_process(config).get("train")
    steps = train.get("steps") if isinstance(train, dict) else None
    return (
        steps if isinstance(steps, int) and not isinstance(steps, bool) and 0 < steps < MOST_STEPS else None
    )


def text_of(config: dict[str, Any], name: str) -> str:
    """The config as YAML, under the name that the job has here. Raises BadConfig."""
    body = config.get("config")
    renamed = {**config, "config": {**(body if isinstance(body, dict) else {}), "name": name}}
    try:
        text = as_text(renamed)
        size = len(text.encode("utf-8"))
    except (ValueError, TypeError, RecursionError, yaml.YAMLError):
        raise BadConfig("holds values that YAML cannot say") from None
    if size > MAX_BYTES:
        raise BadConfig(f"is larger than {MAX_BYTES // 1024} KiB as YAML")
    return text


def prompts_in(folder: Path) -> tuple[str, ...]:
    """The prompts of the previews that the config in a run folder asks for; none without one."""
    try:
        return _prompts(folder, (folder / FILES[0]).stat().st_mtime_ns)
    except OSError:
        return ()


@lru_cache(maxsize=256)
def _prompts(folder: Path, _changed: int) -> tuple[str, ...]:
    try:
        process = _first_process(from_folder(folder) or {})
    except BadConfig:
        return ()
    sample = process.get("sample")
    listed = (sample.get("samples") or sample.get("prompts")) if isinstance(sample, dict) else None
    texts = [each.get("prompt") if isinstance(each, dict) else each for each in _as_list(listed)]
    trigger = process.get("trigger_word")
    return tuple(
        text.replace("[trigger]", trigger) if isinstance(trigger, str) and trigger else text
        for text in (each if isinstance(each, str) else "" for each in texts)
    )


def _first_process(config: dict[str, Any]) -> dict[str, Any]:
    body = config.get("config")
    processes = _as_list(body.get("process") if isinstance(body, dict) else None)
    return processes[0] if processes and isinstance(processes[0], dict) else {}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
