"""Changes of single values in a YAML text that leave its comments and its order alone. Torch-free.

Where a change cannot be made in place, the whole text is written anew; what it says is right either way.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import yaml

Place = Sequence[str | int]
GONE = object()  # the value of a key that shall be left out


def parse(text: str) -> Any:
    """The text as plain data. Raises yaml.YAMLError or ValueError."""
    return yaml.safe_load(text)


def change(text: str, path: Place, value: Any) -> str:
    """The text with `value` at `path` (GONE: without it). Raises ValueError where no such place can be."""
    expected = changed_data(parse(text), path, value)
    for candidate in _candidates(text, list(path), value):
        try:
            if parse(candidate) == expected:
                return candidate
        except (yaml.YAMLError, ValueError):
            continue
    return yaml.safe_dump(expected, sort_keys=False, allow_unicode=True, width=100)


def changed_data(data: Any, path: Place, value: Any) -> Any:
    """A copy of data with `value` at `path`; sections on the way are made, or removed once empty."""
    result = copy.deepcopy(data)
    result = {} if result is None else result
    parents: list[tuple[Any, str | int]] = []
    here = result
    for part in path[:-1]:
        parents.append((here, part))
        here = _step(here, part)
    last = path[-1]
    if isinstance(here, dict):
        if value is GONE:
            here.pop(last, None)
        else:
            here[last] = value
    elif isinstance(here, list) and isinstance(last, int) and last <= len(here):
        if value is GONE:
            del here[last : last + 1]
        else:
            here[last : last + 1] = [value]
    else:
        raise ValueError(f"{path} is no place in this text")
    while value is GONE and parents and here == {}:
        here, part = parents.pop()
        if isinstance(here, list):
            break
        del here[part]
    return result


def _step(here: Any, part: str | int) -> Any:
    """The section or list below `here`, made if there is none."""
    if isinstance(here, dict):
        if here.get(part) is None:
            here[part] = {}
        return here[part]
    if isinstance(here, list) and isinstance(part, int) and part < len(here):
        if here[part] is None:
            here[part] = {}
        return here[part]
    raise ValueError(f"there is no {part}")


def flow(value: Any) -> str:
    """A value on one line: 5, a text, [1, 2], {a: 1}."""
    shown = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False)
    return shown.removesuffix("\n").removesuffix("\n...").strip()


def _block(value: Any, indent: int) -> str:
    """A list or section below its key, each line indented."""
    shown = yaml.safe_dump(value, allow_unicode=True, width=100, sort_keys=False)
    return "".join(f"\n{' ' * indent}{line}" for line in shown.rstrip("\n").split("\n"))


def _candidates(text: str, path: list[str | int], value: Any) -> list[str]:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        return []
    chain: list[yaml.Node] = [node]
    for part in path:
        child = _child(chain[-1], part)
        if child is None:
            break
        chain.append(child)
    found: list[str] = []
    flowing = next((index for index, each in enumerate(chain) if getattr(each, "flow_style", False)), None)
    if flowing is not None and flowing < len(chain) and len(path) > flowing:
        return [_replace_flow(text, chain[flowing], path[flowing:], value)]
    if len(chain) == len(path) + 1:
        if value is GONE:
            found.append(_without(text, chain[-2], path[-1]))
        else:
            found.append(_replaced(text, chain[-1], value))
    elif value is not GONE:
        found.append(_added(text, chain[-1], path[len(chain) - 1 :], value))
    return found


def _child(node: yaml.Node, part: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        child = node.value[part]
        assert isinstance(child, yaml.Node)
        return child
    return None


def _replace_flow(text: str, node: yaml.Node, path: list[str | int], value: Any) -> str:
    start, end = node.start_mark.index, node.end_mark.index
    return text[:start] + flow(changed_data(parse(text[start:end]), path, value)) + text[end:]


def _replaced(text: str, node: yaml.Node, value: Any) -> str:
    start, end = node.start_mark.index, _end(node)
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and isinstance(value, list) and value:
        shown = _block(value, node.start_mark.column).lstrip("\n").lstrip(" ")
        return text[:start] + shown + text[end:]
    if start == end and start and text[start - 1] == ":":  # nothing stood behind the key
        return f"{text[:start]} {flow(value)}{text[end:]}"
    return text[:start] + flow(value) + text[end:]


def _end(node: yaml.Node) -> int:
    """Where the last value inside a node ends; a block's own end mark lies behind comments that follow it."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return _end(node.value[-1][1])
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return _end(node.value[-1])
    return int(node.end_mark.index)


def _line_end(text: str, index: int) -> int:
    """The end of the line (before its newline) that holds the letter before `index`."""
    end = text.find("\n", max(0, index - 1) if text[:index].endswith("\n") else index)
    return len(text) if end < 0 else end


def _without(text: str, parent: yaml.Node, part: str | int) -> str:
    """Without the lines of a key, or of an entry of a list."""
    if isinstance(parent, yaml.MappingNode):
        key, value = next(pair for pair in parent.value if pair[0].value == str(part))
    else:
        key = value = parent.value[part]
    start = text.rfind("\n", 0, key.start_mark.index) + 1
    lead = text[start : key.start_mark.index]
    if lead.strip() not in ("", "-") or (lead.strip() and isinstance(parent, yaml.MappingNode)):
        return ""  # the key shares its line with the dash of an entry
    return text[:start] + text[_line_end(text, _end(value)) + 1 :]


def _added(text: str, holder: yaml.Node, path: list[str | int], value: Any) -> str:
    """With a new key behind the last one of a block mapping, or an entry behind the last one of a list."""
    nested = value
    for part in reversed(path[1:]):
        if isinstance(part, int):
            return ""
        nested = {part: nested}
    end = _line_end(text, _end(holder))
    column = holder.start_mark.column
    if isinstance(holder, yaml.SequenceNode):
        shown = _block([nested], column)
    elif isinstance(nested, dict) and nested or (isinstance(nested, list) and len(nested) > 1):
        shown = f"\n{' ' * column}{path[0]}:" + _block(nested, column + 2)
    else:
        shown = f"\n{' ' * column}{path[0]}: {flow(nested)}"
    return text[:end] + shown + text[end:]
