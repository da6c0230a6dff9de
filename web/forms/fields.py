"""The fields of a job's form, read from the JSON schema of job files. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

Kind = Literal["bool", "choice", "number", "text", "lines", "numbers", "yaml"]
_ALIAS = re.compile(r"Another spelling of (\w+)\.")
_IDLE = "Has no effect here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One value. path: from the process on. default: what leaving it out means (None: nothing)."""

    path: tuple[str | int, ...]
    kind: Kind
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    required: bool = False
    limits: str = ""
    spellings: tuple[str, ...] = ()  # other keys that mean the same

    @property
    def name(self) -> str:
        """The path as one word: train.lr, datasets.0.resolution."""
        return ".".join(map(str, self.path))

    @property
    def key(self) -> str:
        """The key itself, as the YAML has it."""
        return str(self.path[-1])

    @property
    def label(self) -> str:
        """The keys below the section or the entry of a list: ema_config.use_ema."""
        places = [index for index, part in enumerate(self.path) if isinstance(part, int)]
        return ".".join(map(str, self.path[places[-1] + 1 if places else 1 :])) or self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A list of sections, such as the datasets. fields: of one entry, with the path of the first."""

    path: tuple[str | int, ...]
    help: str
    fields: tuple[Field, ...]

    @property
    def name(self) -> str:
        """The path as one word."""
        return ".".join(map(str, self.path))

    def entry(self, index: int) -> list[Field]:
        """The fields of the entry with this number."""
        depth = len(self.path)
        return [replace(each, path=(*self.path, index, *each.path[depth + 1 :])) for each in self.fields]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Everything that one type of process can be told. idle: known keys that do nothing here, and why."""

    fields: tuple[Field, ...]
    listings: tuple[Listing, ...]
    idle: Mapping[str, str] = field(default_factory=dict)


def process_types() -> list[str]:
    """Every type of process, the usual one first."""
    return list(_types())


@lru_cache(maxsize=1)
def _schema() -> dict[str, Any]:
    from toolkit.config_modules.job import job_schema

    return job_schema()


def _types() -> dict[str, str]:
    """Type of process -> name of its definition."""
    found: dict[str, str] = {}
    for name, definition in _schema()["$defs"].items():
        kind = definition.get("properties", {}).get("type", {})
        if name.endswith("Process") and ("const" in kind or "enum" in kind):
            found |= dict.fromkeys(kind.get("enum", [kind.get("const")]), name)
    usual = [each for each in ("sd_trainer",) if each in found]
    return {each: found[each] for each in [*usual, *sorted(set(found) - set(usual))]}


@lru_cache(maxsize=32)
def form_of(process_type: str) -> Form:
    """The form of a type of process; an unknown type gets that of the usual one."""
    types = _types()
    definition = _schema()["$defs"][types.get(process_type) or next(iter(types.values()))]
    fields: list[Field] = []
    listings: list[Listing] = []
    idle: dict[str, str] = {}
    for item in _walk(definition, ()):
        if isinstance(item, Field):
            fields.append(item)
        elif isinstance(item, Listing):
            listings.append(item)
        else:
            idle[item[0]] = item[1]
    return Form(fields=tuple(fields), listings=tuple(listings), idle=idle)


def _walk(
    definition: Mapping[str, Any], path: tuple[str | int, ...]
) -> Iterator[Field | Listing | tuple[str, str]]:
    spellings: dict[str, list[str]] = {}
    for key, entry in definition["properties"].items():
        match = _ALIAS.match(entry.get("description", ""))
        if match:
            spellings.setdefault(match[1], []).append(key)
    required = set(definition.get("required", []))
    for key, entry in definition["properties"].items():
        text = entry.get("description", "")
        here = (*path, key)
        if _ALIAS.match(text):
            continue
        if text.startswith(_IDLE):
            yield ".".join(map(str, here)), text
            continue
        inner = _section(entry)
        if inner is not None:
            yield from _walk(inner, here)
            continue
        items = _plain(entry).get("items", {})
        if isinstance(items, dict) and "$ref" in items:
            below = tuple(each for each in _walk(_resolve(items), (*here, 0)) if isinstance(each, Field))
            yield Listing(path=here, help=text, fields=below)
            continue
        yield _field(here, entry, key in required, tuple(spellings.get(key, [])))


def _resolve(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _schema()["$defs"][entry["$ref"].rsplit("/", 1)[-1]]
    return found


def _plain(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry itself, or of "X or null" the X."""
    others = [each for each in entry.get("anyOf", []) if each.get("type") != "null"]
    return others[0] if len(others) == 1 else entry


def _section(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    plain = _plain(entry)
    found = _resolve(plain) if "$ref" in plain else None
    return found if found is not None and "properties" in found else None


def _field(
    path: tuple[str | int, ...], entry: Mapping[str, Any], required: bool, spellings: tuple[str, ...]
) -> Field:
    plain = _plain(entry)
    kind, choices = _kind(plain)
    low = next((f"at least {plain[key]}" for key in ("minimum", "ge") if key in plain), "")
    low = next((f"more than {plain[key]}" for key in ("exclusiveMinimum", "gt") if key in plain), low)
    high = next((f"at most {plain[key]}" for key in ("maximum", "le") if key in plain), "")
    high = next((f"less than {plain[key]}" for key in ("exclusiveMaximum", "lt") if key in plain), high)
    return Field(
        path=path, kind=kind, help=entry.get("description", ""), default=entry.get("default"),
        choices=choices, required=required,
        limits=", ".join(each for each in (low, high) if each and len(each) < 22),
        spellings=spellings,
    )  # fmt: skip


def _kind(plain: Mapping[str, Any]) -> tuple[Kind, tuple[str, ...]]:
    if "enum" in plain or "const" in plain:
        return "choice", tuple(map(str, plain.get("enum", [plain.get("const")])))
    simple: dict[Any, Kind] = {"boolean": "bool", "integer": "number", "number": "number", "string": "text"}
    kind = plain.get("type")
    if kind in simple:
        return simple[kind], ()
    inner = plain.get("items", {}).get("type") if isinstance(plain.get("items"), dict) else None
    lists: dict[Any, Kind] = {"string": "lines", "integer": "numbers", "number": "numbers"}
    if kind == "array" and inner in lists:
        return lists[inner], ()
    return "yaml", ()
