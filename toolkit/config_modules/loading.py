"""From a name on the command line to a validated job, or to every problem of the file at once. Torch-free."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from toolkit.config_modules.base import Location, as_written
from toolkit.config_modules.checks import check_folders, check_process, process_notes
from toolkit.config_modules.documents import Document, dotted, in_one_line, read_document, split_key, written
from toolkit.config_modules.explain import explain, idle_notes, shown
from toolkit.config_modules.job import (
    JOBS,
    JOBS_NOT_YET,
    PROCESSES_NOT_YET,
    AnyProcess,
    JobConfig,
    job_schema,
)
from toolkit.config_modules.lookup import find_config, load_env_files
from toolkit.config_modules.process import FolderProcess, TrainProcess
from toolkit.errors import ConfigError, Problem, did_you_mean

__all__ = ["LoadedJob", "find_config", "job_schema", "load_env_files", "load_job", "run_folder"]

NAME_TAG = "[name]"
# Names become folders and files on every system.
_BAD_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]|^[.\s]|[.\s]$')
_LONGEST_NAME = 150
_MOST_BYTES = 200  # file names end at 255 bytes; those of a run add up to 30
_NAME_REMEDY = 'use letters, digits, spaces, - _ and dots inside; not < > : " / \\ | ? *'


@dataclass(frozen=True)
class LoadedJob:
    """A job ready to run. raw: the file with `[name]` replaced but ${VAR} kept, for config.yaml.

    rescan: verify every picture again, as the command line may ask for. lines: place in the file -> line, for
    what is found wrong later.
    """

    config: JobConfig
    path: Path
    raw: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    rescan: bool = False
    lines: dict[Location, int] = field(default_factory=dict)

    def located(self, problem: Problem, index: int) -> Problem:
        """A problem with a key of process number `index`, with file, line and the value written there."""
        if problem.key is None or problem.file is not None:
            return problem
        place: Location = ("config", "process", index, *split_key(problem.key))
        places = (place[:end] for end in range(len(place), 0, -1))
        line = next((self.lines[each] for each in places if each in self.lines), None)
        key = f"process[{index}].{problem.key}" if len(self.config.process) > 1 else problem.key
        value = written(self.raw, place)
        return in_one_line(replace(problem, file=str(self.path), line=line, key=key, value=value))


def load_job(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    config_root: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> LoadedJob:
    """Find, read and validate a job file. `name` stands for every [name] tag (default: config.name).

    Raises ConfigError with every problem of the file.
    """
    if environment is None:
        load_env_files()
    file = find_config(path, config_root)
    document = read_document(file, environment)
    return _Reader(document, name).job()


class _Reader:
    """One file on its way to a job; collects problems as it goes."""

    def __init__(self, document: Document, name: str | None) -> None:
        self.document = document
        self.problems = list(document.problems)
        self.notes: list[str] = []
        self.name = name
        self.many = False

    def job(self) -> LoadedJob:
        """The job. Raises ConfigError if anything at all was wrong."""
        data = self.document.data
        if not isinstance(data, dict) or not data:
            message = f"{'is no job description' if data else 'is empty'}; it needs the keys job and config"
            raise ConfigError(Problem("config.syntax", message, file=str(self.document.path)))
        body = self._body(data)
        job_name = None if body is None else self._job_name(body)
        tag = self.name or job_name or NAME_TAG
        data, body = _named(data, tag), _named(body, tag)
        job = self._job_type(data)
        processes = self._processes(job, body) if job and body is not None else []
        if job_name and not self.problems:
            self._check_folders_differ(_named(job_name, tag), processes)
        meta = data.get("meta")
        if meta is not None and not isinstance(meta, dict):
            message = f"must be a section (key: value lines), not {shown(meta)}"
            self._add(("meta",), "config.bad_value", message)
        if self.problems:
            raise ConfigError(self._final_problems())
        config = JobConfig.model_validate(
            {"job": job, "name": _named(job_name, tag), "process": processes, "meta": meta or {}}
        )
        raw = _named(self.document.raw, tag)
        return LoadedJob(config, self.document.path, raw, self.notes, lines=self.document.lines)

    def _add(
        self, location: Location, code: str, message: str, remedy: str | None = None, key: str | None = None
    ) -> None:
        line, value = self.document.line(location), written(self.document.raw, location)
        self.problems.append(
            Problem(code, message, str(self.document.path), line, key or dotted(location), remedy, value)
        )

    def _final_problems(self) -> list[Problem]:
        """All problems by line; a value that is an unset variable is wrong for that reason only."""
        problems = [self._short_key(problem) for problem in self.problems]
        unset = {problem.key for problem in problems if problem.code == "config.unset_variable"}
        told = [in_one_line(p) for p in problems if p.key not in unset or p.code == "config.unset_variable"]
        return sorted(told, key=lambda problem: problem.line or 0)

    def _short_key(self, problem: Problem) -> Problem:
        """The problem with its key counted from the process, where the file has only one."""
        key = (problem.key or "").removeprefix("" if self.many else "config.process[0].")
        return replace(problem, key=key.removeprefix("config.") if key.startswith("config.process[") else key)

    def _body(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """`config:` of the file, or None; unknown keys of both levels are noted."""
        body = data.get("config")
        self._only_keys(data, ("job", "config", "meta"), ())
        if "config" in data and not isinstance(body, dict):
            self._add(
                ("config",), "config.bad_value", f"must be a section with name and process, not {shown(body)}"
            )
        elif "config" not in data:
            self._add((), "config.missing_key", "is missing", "it holds name and process", key="config")
        if not isinstance(body, dict):
            return None
        self._only_keys(body, ("name", "process"), ("config",))
        return body

    def _only_keys(self, data: Mapping[str, Any], known: tuple[str, ...], location: Location) -> None:
        for key in data:
            if key in known:
                continue
            guess = did_you_mean(str(key), known)
            if location and str(key) in TrainProcess.model_fields:
                hint = f"'{key}' belongs to an entry of process"
            else:
                hint = f"did you mean '{guess}'?" if guess else f"known here: {', '.join(known)}"
            self._add((*location, str(key)), "config.unknown_key", "is not a known key", hint)

    def _job_name(self, body: Mapping[str, Any]) -> str | None:
        name = body.get("name")
        if name is None:
            remedy = "it names the run's folder and files"
            self._add(("config",), "config.missing_key", "is missing", remedy, key="config.name")
            return None
        if isinstance(name, bool | list | dict):
            remedy = "put it in quotes"
            self._add(("config", "name"), "config.bad_value", f"must be text, not {shown(name)}", remedy)
            return None
        if NAME_TAG in str(name) and not self.name:
            self._add(("config", "name"), "config.bad_value", "[name] needs a value", "give --name NAME")
            return None
        final = str(name).replace(NAME_TAG, self.name or NAME_TAG)
        if not _names_a_folder(final):
            self._add(("config", "name"), "config.bad_value", f"'{final}' cannot name a folder", _NAME_REMEDY)
        return final

    def _job_type(self, data: Mapping[str, Any]) -> str:
        """The kind of job; a missing or wrong one is noted."""
        if "job" not in data:
            self._add((), "config.missing_key", "is missing", f"one of {', '.join(JOBS)}", key="job")
            return ""
        job = str(data["job"])
        if job in JOBS:
            return job
        if job in JOBS_NOT_YET:
            self._add(
                ("job",),
                "config.not_yet",
                f"job '{job}' is not supported yet",
                f"supported: {', '.join(JOBS)}",
            )
        else:
            guess = did_you_mean(job, JOBS)
            hint = f"did you mean '{guess}'?" if guess else f"known: {', '.join(JOBS)}"
            self._add(("job",), "config.unknown_name", f"unknown job '{job}'", hint)
        return ""

    def _processes(self, job: str, body: Mapping[str, Any]) -> list[AnyProcess]:
        entries = body.get("process")
        if not isinstance(entries, list) or not entries:
            remedy = "write it as a list: `process:`, then `- type: ...`"
            message = "is missing" if entries is None else "must be a list of processes"
            self._add(("config", "process"), "config.missing_key", message, remedy, key="config.process")
            return []
        self.many = len(entries) > 1
        found = [self._process(job, entry, index) for index, entry in enumerate(entries)]
        return [process for process in found if process is not None]

    def _process(self, job: str, entry: Any, index: int) -> AnyProcess | None:
        """One entry of `process`, or None if something is wrong with it."""
        prefix: Location = ("config", "process", index)
        shown_prefix = f"process[{index}]" if self.many else ""
        kinds = JOBS[job]
        if not isinstance(entry, dict):
            self._add(prefix, "config.bad_value", f"must be a section with a type, not {shown(entry)}")
            return None
        kind = entry.get("type")
        if kind not in kinds:
            self._wrong_type(job, kind, (*prefix, "type"))
            return None
        section = kinds[kind]
        for location, code, message, remedy in check_folders(entry):
            self._add((*prefix, *location), code, message, remedy, key=_key(shown_prefix, dotted(location)))
        notes = idle_notes(section, entry)
        self.notes += [_key(shown_prefix, note) for note in notes] + _advice(entry, shown_prefix)
        try:
            process = section.model_validate(entry)
        except ValidationError as error:
            self._explain(error, section, entry, prefix, shown_prefix)
            return None
        self.notes += [_key(shown_prefix, note) for note in process_notes(process)]
        name = process.name if isinstance(process, FolderProcess) else None
        if name is not None and not _names_a_folder(name):
            message = f"'{name}' cannot name a folder"
            key = _key(shown_prefix, "name")
            self._add((*prefix, "name"), "config.bad_value", message, _NAME_REMEDY, key=key)
        for location, code, message, remedy in check_process(process):
            self._add((*prefix, *location), code, message, remedy, key=_key(shown_prefix, dotted(location)))
        return process

    def _check_folders_differ(self, job_name: str, processes: list[AnyProcess]) -> None:
        """Note every process whose run folder is that of one before it."""
        owners: dict[Path, int] = {}
        for index, process in enumerate(processes):
            folder = run_folder(process, job_name)
            if folder is None:
                continue
            owner = owners.setdefault(folder, index)
            if owner != index:
                message = f"writes the run folder of process[{owner}]: {folder}"
                location = ("config", "process", index, "name")
                self._add(location, "config.same_run", message, "give each process a name of its own",
                          key=f"process[{index}].name")  # fmt: skip

    def _explain(
        self,
        error: ValidationError,
        section: type[AnyProcess],
        entry: Any,
        prefix: Location,
        shown_prefix: str,
    ) -> None:
        def place(location: Location) -> tuple[str, int | None]:
            written = as_written(section, entry, location)
            return str(self.document.path), self.document.line((*prefix, *written))

        problems = explain(error, section, place)
        for problem in problems:
            key = _key(shown_prefix, problem.key or "") or dotted(prefix)
            inner = as_written(section, entry, split_key(problem.key or ""))
            twins = [each for each in problems if each.message == problem.message and each is not problem]
            if twins and problem.code != "config.missing_key" and not _is_written(entry, inner):
                continue  # a value that another section handed down, where it is told
            location = (*prefix, *inner)
            value = written(self.document.raw, location)
            self.problems.append(replace(problem, key=key, value=value))

    def _wrong_type(self, job: str, kind: Any, location: Location) -> None:
        homes = [other for other, kinds in JOBS.items() if kind in kinds]
        known = f"known in job '{job}': {', '.join(JOBS[job])}"
        if kind is None:
            self._add(location, "config.missing_key", "is missing", known)
        elif homes:
            self._add(
                location, "config.bad_value", f"'{kind}' is no process of job '{job}'", f"set job: {homes[0]}"
            )
        elif kind in PROCESSES_NOT_YET:
            self._add(location, "config.not_yet", f"process type '{kind}' is not supported yet", known)
        else:
            guess = did_you_mean(str(kind), JOBS[job])
            hint = f"did you mean '{guess}'?" if guess else known
            self._add(location, "config.unknown_name", f"unknown process type '{kind}'", hint)


def run_folder(process: AnyProcess, job_name: str) -> Path | None:
    """Where a process keeps its run, links resolved; None for one that has no run folder."""
    if not isinstance(process, FolderProcess):
        return None
    return (Path(process.training_folder).expanduser() / (process.name or job_name)).resolve()


def _names_a_folder(name: str) -> bool:
    """Whether a name can be a folder's and a file's on every system."""
    fits = 0 < len(name) <= _LONGEST_NAME and len(name.encode("utf-8", "replace")) <= _MOST_BYTES
    return fits and not _BAD_NAME.search(name)


def _is_written(data: Any, location: Location) -> bool:
    """Whether raw data has something at a place."""
    for part in location:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _key(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix and key else prefix or key


def _advice(entry: Mapping[str, Any], prefix: str) -> list[str]:
    """Notes on settings that may mean something else than their author thinks."""
    notes = []
    if "network" in entry and not entry["network"] and entry["network"] != {}:
        notes.append(_key(prefix, "network: is empty, so the model itself is trained"))
    train = entry.get("train")
    if not isinstance(train, Mapping):
        return notes
    if train.get("timestep_type") == "sigmoid" and train.get("noise_scheduler", "ddpm") != "flowmatch":
        text = "sigmoid is honoured with ddpm too (ai-toolkit then trains uniformly: leave it out for that)"
        notes.append(_key(prefix, f"train.timestep_type: {text}"))
    if train.get("gradient_accumulation_steps", 1) not in (None, 1, "1"):
        text = "read as gradient_accumulation; steps counts updates of the weights"
        notes.append(_key(prefix, f"train.gradient_accumulation_steps: {text}"))
    return notes


def _named(data: Any, name: str) -> Any:
    """A copy of data with [name] replaced in every text value."""
    if isinstance(data, str):
        return data.replace(NAME_TAG, name)
    if isinstance(data, list):
        return [_named(item, name) for item in data]
    if isinstance(data, dict):
        return {key: _named(value, name) for key, value in data.items()}
    return data
