"""Turning what pydantic found wrong into problems a person can act on. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pydantic import ValidationError

from toolkit.config_modules.base import Location, Section, is_default, section_at, subsections, walk_raw
from toolkit.config_modules.documents import dotted
from toolkit.errors import Problem, did_you_mean

_LONGEST_VALUE = 60

# pydantic's error type -> what is wrong; the braces take its context.
_MESSAGES = {
    "missing": "is missing",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must be of the form {pattern}",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "too_short": "needs at least {min_length} entries",
    "too_long": "takes at most {max_length} entries",
    "dict_type": "must be a section (key: value lines)",
    "model_type": "must be a section (key: value lines)",
    "model_attributes_type": "must be a section (key: value lines)",
    "literal_error": "must be {expected}",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "invalid_key": "keys must be text",
}
_SAYS_ITS_VALUE = (
    "not_yet",
    "unknown_name",
    "alias",
    "arch",
    "prediction",
    "prompt_flag",
    "prompt_file",
    "missing",
    "web_address",
    "needs",
)
_QUOTES = "put it in quotes"
_REMEDIES = {
    "string_type": _QUOTES,
    "list_type": "write it as [a, b] or as lines that start with a dash",
    "tuple_type": "write it as [a, b, c]",
}

Place = Callable[[Location], tuple[str, int | None]]


def explain(error: ValidationError, section: type[Section], place: Place) -> list[Problem]:
    """One problem for each thing wrong in a section.

    place: location inside the section -> (file, line).
    """
    problems: list[Problem] = []
    for detail in error.errors(include_url=False):
        location = tuple(detail["loc"])
        file, line = place(location)
        code, message, remedy = _describe(detail, section, location)
        problems.append(Problem(code, message, file, line, dotted(location) or None, remedy))
    return problems


Said = tuple[str, str, str | None]


def _said(code: str, message: str, remedy: str | None = None) -> Said:
    return code, message, remedy


def _describe(detail: Mapping[str, Any], section: type[Section], location: Location) -> Said:
    """(code, message, remedy) of one of pydantic's errors."""
    kind = detail["type"]
    if kind == "extra_forbidden":
        return _unexpected(section, location, detail["input"])
    template = _MESSAGES.get(kind)
    message = template.format(**detail.get("ctx", {})) if template else str(detail["msg"])
    if kind == "not_yet":
        return _said("config.not_yet", message)
    if kind == "missing":
        return _said("config.missing_key", message)
    if kind == "unknown_name":
        return _said("config.unknown_name", message)
    of_section = template is None and isinstance(detail["input"], Mapping)  # all of it would tell nothing
    if kind not in _SAYS_ITS_VALUE and not of_section:
        message = f"{message}, not {shown(detail['input'])}"
    return _said("config.bad_value", message, _REMEDIES.get(kind))


def _unexpected(section: type[Section], location: Location, value: Any) -> Said:
    """What to say of a key that is no field: known but not honoured, or unknown."""
    holder = section_at(section, location) or section
    key = str(location[-1])
    if key in holder.NOT_YET:
        default = holder.NOT_YET[key]
        default = getattr(default, "values", (default,))[0]
        usual = f" or set {shown(default)}" if default is not None else ""
        return _said("config.not_yet", f"{shown(value)} is not supported yet", f"leave it out{usual}")
    guess = did_you_mean(key, holder.known_keys())
    homes = [home for home in _homes(section).get(key, []) if home != dotted(location[:-1])]
    if homes and not (guess and guess.lower() == key.lower()):
        remedy = f"'{key}' belongs to {' or '.join(homes)}"
        return _said("config.unknown_key", "is not a key of this section", remedy)
    hint = f"did you mean '{guess}'?" if guess else f"known here: {', '.join(holder.model_fields)}"
    return _said("config.unknown_key", "is not a known key", hint)


@cache
def _homes(section: type[Section]) -> dict[str, list[str]]:
    """Key -> names of the sections it may be written in."""
    homes: dict[str, list[str]] = {}

    def visit(holder: type[Section], name: str) -> None:
        for key in holder.known_keys():
            homes.setdefault(key, []).append(name)
        for field, inner in subsections(holder).items():
            visit(inner, f"{name}.{field}" if name else field)

    visit(section, "")
    shared = {key: [name for name in names if name != "first_sample"] for key, names in homes.items()}
    return {key: [name or "the process" for name in names] for key, names in shared.items()}


def shown(value: Any) -> str:
    """A raw value as YAML would write it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def idle_notes(section: type[Section], data: Any, prefix: Location = ()) -> list[str]:
    """A line for each key of raw data that is set but changes nothing here."""
    notes = []
    for location, holder, mapping in walk_raw(section, data, prefix):
        for key, value in mapping.items():
            default, reason = holder.IDLE.get(key, (value, ""))
            if not is_default(value, default):
                notes.append(f"{dotted((*location, key))}: {shown(value)} has no effect: {reason}")
    return notes
