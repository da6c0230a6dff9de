"""What a new job may begin with: an example, a dataset, another job. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from toolkit.paths import ROOT
from web.configs import MOST_OF_NAME, with_name
from web.forms.values import process_of
from web.forms.yaml_text import change, parse

EXAMPLES = ROOT / "config" / "examples"
_COMMAND = re.compile(r"^\s*(?:python|make)\b")
_HEADER = re.compile(r"\A(?:#[^\n]*\n|\s*\n)*(?:---\s*\n)?")


@dataclass(frozen=True, slots=True)
class Example:
    """A job file to copy."""

    name: str
    about: str
    process_type: str
    model: str
    small: bool  # it trains on the embedded model


def list_examples(folder: Path = EXAMPLES) -> list[Example]:
    """The examples that come with the program; files that cannot be read are left out."""
    found = []
    for path in sorted(folder.glob("*.yml")):
        try:
            text = path.read_text(encoding="utf-8")
            process, _ = process_of(parse(text))
        except (OSError, yaml.YAMLError, ValueError):
            continue
        model = process.get("model") if isinstance(process.get("model"), dict) else {}
        name = str(model.get("name_or_path", ""))
        found.append(Example(path.stem, _about(text), str(process.get("type", "")), name, "tiny" in name))
    return found


def example_text(name: str, folder: Path = EXAMPLES) -> str | None:
    """The text of an example without the comment at its top, or None if there is no such example."""
    if name not in {example.name for example in list_examples(folder)}:
        return None
    return _HEADER.sub("", (folder / f"{name}.yml").read_text(encoding="utf-8"), count=1)


def list_datasets(root: Path) -> list[Path]:
    """The folders of datasets."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))


def free_name(wanted: str, taken: Collection[str], ending: str = "") -> str:
    """wanted + ending, or the first of it with _2, _3 … that is not taken; cut before the ending to fit."""
    name, number = fitting(wanted, ending), 1
    while name in taken:
        number += 1
        name = fitting(wanted, f"{ending}_{number}")
    return name


def fitting(wanted: str, ending: str) -> str:
    """wanted + ending, cut before the ending where it would be too long for a job's name."""
    characters, size = MOST_OF_NAME
    stem = wanted[: characters - len(ending)].encode()[: size - len(ending.encode())].decode(errors="ignore")
    return (stem if stem == wanted else stem.rstrip(" .")) + ending


def adapted(text: str, name: str, *, training_folder: Path | None, device: str | None) -> str:
    """The text under another name; where it says so already, with this folder and device."""
    text = with_name(text, name)
    process, path = process_of(parse(text))
    if training_folder is not None and "training_folder" in process:
        text = change(text, (*path, "training_folder"), str(training_folder))
    if device is not None and "device" in process:
        text = change(text, (*path, "device"), device)
    return text


def with_dataset(text: str, folder: str) -> str:
    """The text with one dataset: this folder, at the resolution of the first one that it had."""
    process, path = process_of(parse(text))
    for section in ("caption", "eval"):
        if isinstance(process.get(section), dict):
            return change(text, (*path, section, "dataset_path"), [folder])
    before: Any = process.get("datasets")
    first = before[0] if isinstance(before, list) and before and isinstance(before[0], dict) else {}
    kept = {key: first[key] for key in ("resolution", "cache_latents_to_disk") if key in first}
    return change(text, (*path, "datasets"), [{"folder_path": folder, "caption_ext": "txt", **kept}])


def _about(text: str) -> str:
    """The comment at the top of an example, without the command that runs it."""
    lines = []
    for line in text.split("\n"):
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    told = " ".join(line for line in lines if line and not _COMMAND.match(line))
    told = re.sub(r"\b(?:which is, step by step|in about twenty minutes):\s*", "", told)
    return told[:1].upper() + told[1:]
