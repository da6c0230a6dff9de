"""Values of a config as texts of a form, and back. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from web.forms.fields import Field, Form, Listing
from web.forms.yaml_text import GONE, change, flow, parse

PREFIX = "f:"  # of the names of inputs
ON = "true"


def process_of(data: Any) -> tuple[Any, tuple[str | int, ...]]:
    """The first process of a parsed config, and its path; {} where there is none."""
    config = data.get("config") if isinstance(data, dict) else None
    listed = config.get("process") if isinstance(config, dict) else None
    path = ("config", "process", 0)
    return (listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}), path


def locate(process: Any, field: Field) -> tuple[Any, tuple[str | int, ...]]:
    """(value, path) of a field: under the key that the config uses; GONE if it is not set."""
    here = process
    for part in field.path[:-1]:
        if isinstance(here, dict):
            here = here.get(part)
        else:
            here = (
                here[part] if isinstance(here, list) and isinstance(part, int) and part < len(here) else None
            )
    if isinstance(here, dict):
        for key in (field.path[-1], *field.spellings):
            if here.get(key) is not None:
                return here[key], (*field.path[:-1], key)
    return GONE, field.path


def shown(field: Field, value: Any) -> str:
    """A value as the text of its input; "" for one that is not set."""
    if value is GONE or value is None:
        return ON if field.kind == "bool" and field.default is True else ""
    if field.kind == "bool":
        return ON if value in (True, "true", 1) else ""
    if isinstance(value, list) and field.kind == "lines" and all(isinstance(each, str) for each in value):
        return "\n".join(value)
    if (
        isinstance(value, list)
        and field.kind == "numbers"
        and not any(isinstance(e, list | dict) for e in value)
    ):
        return ", ".join(flow(each) for each in value)
    if isinstance(value, str):
        return value
    return flow(value)


def read(field: Field, text: str) -> Any:
    """The value that a text of the form means; what makes no sense is kept for the check to tell."""
    text = text.replace("\r\n", "\n")
    if field.kind == "bool":
        return text == ON
    if not text.strip():
        return GONE
    if field.kind == "number":
        return _number(text.strip())
    if field.kind == "lines":
        return [line.strip() for line in text.split("\n") if line.strip()]
    if field.kind == "numbers":
        return [_number(each) for each in re.split(r"[\s,;]+", text.strip("[] \n")) if each]
    if field.kind == "yaml":
        try:
            return yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            return text
    return text.strip() if field.kind == "choice" else text


def _number(text: str) -> Any:
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    try:
        float(text)
    except ValueError:
        return text
    found = yaml.safe_load(text)
    return found if isinstance(found, float) else text  # 1e-4 is written as it was typed


def entries(process: Any, listing: Listing) -> int:
    """How many sections a list has."""
    here = process
    for part in listing.path:
        here = here.get(part) if isinstance(here, dict) else None
    return len(here) if isinstance(here, list) else 0


def all_fields(form: Form, process: Any) -> list[Field]:
    """Every field that the form shows for a process, those of the entries of lists too."""
    listed = [f for each in form.listings for i in range(entries(process, each)) for f in each.entry(i)]
    return [*form.fields, *listed]


def apply_form(text: str, form: Form, posted: Mapping[str, str]) -> str:
    """The text with every value that is not as the form had shown it. Raises yaml.YAMLError, ValueError."""
    process, root = process_of(parse(text))
    for field in all_fields(form, process):
        key = PREFIX + field.name
        if key not in posted and PREFIX + field.name + ":there" not in posted:
            continue
        value, path = locate(process, field)
        given = posted.get(key, "")
        if given.replace("\r\n", "\n").strip() != shown(field, value).strip():
            text = change(text, (*root, *path), read(field, given))
    return text
