"""The config of a job as text: what it is called, whether it can run, where it will write. Torch-free."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from toolkit.config_modules.documents import read_document
from toolkit.config_modules.loading import LoadedJob, load_job
from toolkit.config_modules.process import FolderProcess
from toolkit.errors import ConfigError, Problem, UserError
from toolkit.paths import ROOT
from web.environment import is_secret_name

MAX_BYTES = 256 * 1024
MOST_STEPS = 2**53  # of a job; columns of the database hold no more than eight times that
MOST_OF_NAME = (100, 150)  # characters, bytes
_MAX_DEPTH = 60
_MAX_NODES = 50_000  # once aliases are spelled out
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NAME = re.compile(r"[^\W_][\w .-]{0,98}[^\W_.]|[^\W_]|[^\W_][\w .-]{0,98}[_-]")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
KINDS = {"extension": "train"}  # job: of the config -> kind, where they differ
FILE = "config"  # what the text is called in problems


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedConfig:
    """What a text says. name and kind are known even of many texts that cannot run."""

    name: str | None = None
    kind: str = "train"
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    run_folders: tuple[Path, ...] = ()
    total_steps: int | None = None
    loaded: LoadedJob | None = None


def bad_job_name(name: str) -> str | None:
    """Why a text cannot name a job, or None if it can: it also names a folder, on every system."""
    if not _NAME.fullmatch(name) or len(name.encode()) > MOST_OF_NAME[1]:
        return (
            "must be 1 to 100 letters, digits, blanks, '.', '-' and '_', "
            "begin with a letter or digit and not end with a dot or blank"
        )
    if _RESERVED.fullmatch(name):
        return "is reserved by the system"
    return None


def as_text(config: Mapping[str, Any]) -> str:
    """A config as YAML."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100)


def check_config(
    text: str, *, name: str | None = None, environment: Mapping[str, str] | None = None,
    output_root: Path | None = None,
) -> CheckedConfig:  # fmt: skip
    """Everything that is wrong with a text, as run.py would say it, and what this server adds to that.

    name: what [name] stands for. environment: the variables that ${...} may name. output_root: the folder
    that runs must lie in.
    """
    early = unreadable(text)
    if early is not None:
        return CheckedConfig(problems=[early])
    with tempfile.TemporaryDirectory(prefix="aitk-config-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text, encoding="utf-8")
        found = _load(path, name, environment or {})
    problems = [_without_path(problem, str(path)) for problem in found.problems]
    told = any(problem.key == "config.name" for problem in problems)
    if found.name is not None and not told and (reason := bad_job_name(found.name)) is not None:
        problems.append(Problem("config.bad_value", f"{found.name!r} {reason}", FILE, key="config.name"))
    if output_root is not None:
        problems += [
            Problem(
                "web.run_folder", f"{folder} lies outside the folder of runs, {output_root}", FILE,
                key="training_folder", remedy=f"set training_folder: {output_root}",
            )
            for folder in found.run_folders
            if not folder.is_relative_to(output_root.resolve())
        ]  # fmt: skip
    return replace(found, problems=problems)


def with_name(text: str, name: str) -> str:
    """The text with another config.name, the rest of it as it was; unchanged where no name can be found."""
    with tempfile.TemporaryDirectory(prefix="aitk-config-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            document = read_document(path, {})
        except ConfigError:
            return text
    line = document.lines.get(("config", "name"))
    if line is None:
        return text
    lines = text.splitlines(keepends=True)
    quoted = yaml.safe_dump(name, allow_unicode=True, default_style='"', width=1000).strip()
    lines[line - 1] = re.sub(
        r"""(\bname["']?\s*:\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^#\n,}]*?)(?=\s*(?:#|,|\}|$))""",
        lambda match: match[1] + quoted, lines[line - 1], count=1,
    )  # fmt: skip
    return "".join(lines)


def unreadable(text: str) -> Problem | None:
    """Why a text is not even looked at, or None: too large, or small but enormous once read."""
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        return Problem("web.too_large", f"is larger than {MAX_BYTES // 1024} KiB", FILE)
    try:
        return _swollen(text)
    except (yaml.YAMLError, ValueError):
        return None  # the loader says what is wrong, with its line


def _swollen(text: str) -> Problem | None:
    """Find deep nesting, and aliases that stand for too much, from the parser's events: nothing is built."""
    sizes: dict[str, int] = {}
    stack: list[tuple[str | None, int]] = [(None, 0)]  # anchor, and how many values there are so far
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        anchor, found = getattr(event, "anchor", None), 0
        if isinstance(event, yaml.AliasEvent):
            found = sizes.get(event.anchor or "", _MAX_NODES + 1)  # of itself: without end
        elif isinstance(event, yaml.ScalarEvent):
            found = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            stack.append((anchor, 1))
            if len(stack) > _MAX_DEPTH:
                return Problem("config.syntax", "is nested too deeply", FILE, line=_line(event))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, found = stack.pop()
        if anchor is not None and not isinstance(event, yaml.CollectionStartEvent | yaml.AliasEvent):
            sizes[anchor] = found
        stack[-1] = (stack[-1][0], stack[-1][1] + found)
        if stack[-1][1] > _MAX_NODES:
            message = f"holds more than {_MAX_NODES} values once its aliases are spelled out"
            return Problem("web.too_large", message, FILE, line=_line(event))
    return None


def _line(event: yaml.Event) -> int | None:
    return None if event.start_mark is None else event.start_mark.line + 1


def _load(path: Path, name: str | None, environment: Mapping[str, str]) -> CheckedConfig:
    try:
        document = read_document(path, environment)
    except ConfigError as error:
        return CheckedConfig(problems=error.problems)
    given, kind = _named(document.raw, name)
    secrets = list(_secret_problems(document.raw))
    try:
        loaded = load_job(path, name, environment=environment)
    except UserError as error:
        return CheckedConfig(name=given, kind=kind, problems=secrets + error.problems)
    runs = [process for process in loaded.config.process if isinstance(process, FolderProcess)]
    folders = (_run_folder(process, loaded.config.name) for process in runs)
    steps = sum(getattr(getattr(process, "train", None), "steps", 0) for process in runs)
    return CheckedConfig(
        name=loaded.config.name, kind=kind, problems=secrets, notes=loaded.notes,
        run_folders=tuple(folders), total_steps=min(steps, MOST_STEPS) or None, loaded=loaded,
    )  # fmt: skip


def _named(data: Any, name: str | None) -> tuple[str | None, str]:
    """(name, kind) of a parsed text, as far as it says."""
    if not isinstance(data, dict):
        return None, "train"
    # YAML can spell out half of a letter, and no database takes that.
    kind = str(data.get("job") or "train").encode("utf-8", "replace").decode()
    body = data.get("config")
    given = body.get("name") if isinstance(body, dict) else None
    if not isinstance(given, str | int | float) or isinstance(given, bool):
        return None, KINDS.get(kind, kind)
    text = str(given)
    return text.replace("[name]", name) if name is not None else text, KINDS.get(kind, kind)


def _run_folder(process: FolderProcess, job_name: str) -> Path:
    """Where a process will keep its run when it is started in the repository, links resolved."""
    return (ROOT / Path(process.training_folder).expanduser() / (process.name or job_name)).resolve()


def _secret_problems(data: Any) -> Iterator[Problem]:
    for name in sorted(set(_variables(data))):
        if is_secret_name(name):
            yield Problem(
                "web.secret_variable", f"${{{name}}} may hold a secret, and configs end up in files",
                FILE, remedy="programs find it in their environment without the config's help",
            )  # fmt: skip


def _variables(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield from _VARIABLE.findall(data)
    elif isinstance(data, list):
        for item in data:
            yield from _variables(item)
    elif isinstance(data, dict):
        for value in data.values():
            yield from _variables(value)


def _without_path(problem: Problem, path: str) -> Problem:
    """The problem without the name of the temporary file."""
    file = FILE if problem.file == path else problem.file
    return replace(problem, file=file, message=problem.message.replace(path, FILE))
