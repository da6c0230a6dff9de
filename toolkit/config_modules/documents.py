"""A config file as data with the line of every key. Reads YAML, JSON and JSONC. Torch-free.

Values may name environment variables as ${NAME}; comments are never looked at.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from toolkit.config_modules.base import Location
from toolkit.errors import ConfigError, Problem
from toolkit.text import one_line

EXTENSIONS = (".json", ".jsonc", ".yaml", ".yml")
_MAX_VALUES = 50_000  # once aliases are spelled out; what is written in full may be longer
_MAX_DEPTH = 100
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}")
# Comments outside of strings, then commas before a closing bracket and tabs, which YAML does not allow.
_JSON_COMMENT = re.compile(r'(?P<keep>"(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
_JSON_EXTRA = re.compile(r'(?P<keep>"(?:\\.|[^"\\])*")|,(?=\s*[}\]])|\t', re.DOTALL)


class _Loader(yaml.SafeLoader):
    """SafeLoader whose floats include 1e-4, which YAML 1.1 reads as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$|^[-+]?\.[0-9][0-9_]*[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


@dataclass
class Document:
    """A parsed file. data: with variables expanded; raw: as written; lines: key path -> line, from 1."""

    path: Path
    data: Any
    raw: Any
    lines: dict[Location, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, location: Location) -> int | None:
        """The line of a key, or of the nearest key around it that is written."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.lines:
                return self.lines[location[:end]]
        return None


def read_document(path: Path, environment: Mapping[str, str] | None = None) -> Document:
    """Parse a file; variables come from `environment` (default: the process's). Raises ConfigError.

    Duplicate keys and unset variables are left in `problems`, to be reported with all others.
    """
    environment = os.environ if environment is None else environment
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Problem("config.unreadable", f"cannot be read: {error}", file=str(path))) from None
    if path.suffix.lower() in (".json", ".jsonc"):
        return _read_json(path, text, environment)
    try:
        node = _compose(text)
        _require_small(path, node)
        raw = _construct(path, node)
        if "<<" in text:  # constructing merges them into their mapping, where they would be doubles
            node = _compose(text)
        document = Document(path, None, raw)
        if node is not None:
            _visit(node, (), document, environment)
        document.data = _construct(path, node)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(path, error) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = one_line(f"is not valid YAML: {error}")
        raise ConfigError(Problem("config.syntax", message, file=str(path))) from None
    return document


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _require_small(path: Path, root: yaml.Node | None) -> None:
    """Raises ConfigError where a few aliases of aliases stand for more than anyone can read."""
    sizes: dict[yaml.Node, int] = {}
    total = 0 if root is None else _spelled_out(root, sizes)
    if total <= _MAX_VALUES or total == len(sizes):  # no aliases: every value is written
        return
    first = next(node for node, size in sizes.items() if size > _MAX_VALUES)  # inner nodes come first
    message = f"holds more than {_MAX_VALUES} values once its aliases are spelled out"
    line = first.start_mark.line + 1
    raise ConfigError(Problem("config.syntax", message, str(path), line, remedy="use fewer aliases"))


def _spelled_out(node: yaml.Node, sizes: dict[yaml.Node, int], depth: int = 0) -> int:
    """How many values a node holds when each alias counts as what it stands for. Looks at a node once."""
    if node in sizes:
        return sizes[node]
    if depth > _MAX_DEPTH:  # an alias inside its own anchor
        raise RecursionError("nested too deeply")
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [each for pair in node.value for each in pair]
    sizes[node] = 1 + sum(_spelled_out(each, sizes, depth + 1) for each in inner)
    return sizes[node]


def _construct(path: Path, node: yaml.Node | None) -> Any:
    """Plain data from a composed node."""
    loader = _Loader("")
    try:
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _syntax_error(path: Path, error: yaml.MarkedYAMLError) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    message = f"is not valid YAML: {error.problem or error.context}"
    remedy = "indent with spaces, not tabs" if "'\\t'" in str(error.problem) else None
    line = None if mark is None else mark.line + 1
    return ConfigError(Problem("config.syntax", message, file=str(path), line=line, remedy=remedy))


def _visit(
    node: yaml.Node, location: Location, document: Document, environment: Mapping[str, str], depth: int = 0
) -> None:
    """Note every line, find duplicate keys and expand variables in scalars, in place."""
    if depth > _MAX_DEPTH:  # an alias inside its own anchor
        raise RecursionError("nested too deeply")
    document.lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        _expand_node(node, location, document, environment)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _visit(item, (*location, index), document, environment, depth + 1)
    elif isinstance(node, yaml.MappingNode):
        for key, value, inner in _pairs(node, location, document):
            document.lines[inner] = key.start_mark.line + 1
            _visit(value, inner, document, environment, depth + 1)


def _pairs(
    node: yaml.MappingNode, location: Location, document: Document
) -> Iterator[tuple[yaml.Node, yaml.Node, Location]]:
    """Key node, value node and location of each pair; merge keys (<<) count where they are used."""
    seen: dict[str, int] = {}
    for key, value in node.value:
        name = str(key.value)
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for source in sources:
                if isinstance(source, yaml.MappingNode):
                    yield from ((k, v, (*location, str(k.value))) for k, v in source.value)
            continue
        if name in seen:
            message = f"is written twice, first on line {seen[name]}"
            document.problems.append(
                Problem(
                    "config.duplicate_key",
                    message,
                    str(document.path),
                    line,
                    dotted((*location, name)),
                    remedy="keep one of them",
                )
            )
        seen.setdefault(name, line)
        yield key, value, (*location, name)


def _expand_node(
    node: yaml.ScalarNode, location: Location, document: Document, environment: Mapping[str, str]
) -> None:
    expanded = _expand(node.value, location, node.start_mark.line + 1, document, environment)
    if expanded != node.value:
        node.value = expanded
        if node.style is None:  # unquoted: ${STEPS} may stand for a number
            node.tag = _Loader("").resolve(yaml.ScalarNode, expanded, (True, False))  # type: ignore[no-untyped-call]


def _expand(
    text: str, location: Location, line: int | None, document: Document, environment: Mapping[str, str]
) -> str:
    """`text` with each ${NAME} replaced; unset names are noted and left in place."""

    def value(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in environment:
            document.problems.append(
                Problem(
                    "config.unset_variable",
                    f"environment variable {name} is not set",
                    str(document.path),
                    line,
                    dotted(location),
                    remedy=f"set it, or write {name}=... in a file .env",
                )
            )
            return match[0]
        return environment[name]

    return _VARIABLE.sub(value, text)


def _blank(match: re.Match[str]) -> str:
    """A string as it is; anything else as spaces, so that lines and columns stay."""
    return match["keep"] or re.sub(r"[^\n]", " ", match[0])


def _read_json(path: Path, text: str, environment: Mapping[str, str]) -> Document:
    """JSON is read by json; its lines come from YAML, of which it is nearly a subset."""
    plain = _JSON_EXTRA.sub(_blank, _JSON_COMMENT.sub(_blank, text))
    try:
        raw = json.loads(plain)
    except json.JSONDecodeError as error:
        problem = Problem(
            "config.syntax", f"is not valid JSON: {error.msg}", file=str(path), line=error.lineno
        )
        raise ConfigError(problem) from None
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets without end
        problem = Problem("config.syntax", "is nested too deeply or holds too long a number", file=str(path))
        raise ConfigError(problem) from None
    document = Document(path, None, raw)
    try:
        node = _compose(plain)
        if node is not None:
            _visit(node, (), document, environment={**environment, **_all_names(plain)})
    except (yaml.YAMLError, RecursionError):  # the lines are a help only
        document.lines, document.problems = {}, []
    document.data = _expand_data(raw, (), document, environment)
    return document


def _all_names(text: str) -> dict[str, str]:
    """Every variable of a text, standing for itself."""
    return {match["name"]: match[0] for match in _VARIABLE.finditer(text)}


def _expand_data(data: Any, location: Location, document: Document, environment: Mapping[str, str]) -> Any:
    if isinstance(data, str):
        return _expand(data, location, document.line(location), document, environment)
    if isinstance(data, list):
        return [_expand_data(item, (*location, i), document, environment) for i, item in enumerate(data)]
    if isinstance(data, dict):
        return {
            key: _expand_data(value, (*location, key), document, environment) for key, value in data.items()
        }
    return data


def in_one_line(problem: Problem) -> Problem:
    """The problem without the line breaks that a name in the file may have."""
    key, remedy = (None if text is None else one_line(text) for text in (problem.key, problem.remedy))
    return replace(problem, message=one_line(problem.message), key=key, remedy=remedy)


def dotted(location: Location) -> str:
    """A key path as people write it: ("datasets", 0, "folder_path") -> datasets[0].folder_path."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def split_key(key: str) -> Location:
    """The inverse of dotted: datasets[0].folder_path -> ("datasets", 0, "folder_path")."""
    parts = re.findall(r"\[(\d+)\]|([^.\[\]]+)", key)
    return tuple(int(index) if index else name for index, name in parts)


def written(raw: Any, location: Location) -> str | int | float | bool | None:
    """The single value at a place of raw data, variables unexpanded; None for a section or a secret."""
    if "notify" in location:
        return None
    for part in location:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return None
    return raw if isinstance(raw, str | int | float | bool) else None
