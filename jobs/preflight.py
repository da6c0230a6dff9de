"""Checking jobs before they run: config, folders, pictures, captions, models, disks. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs import build
from jobs.preflight_models import MODEL_KEY, check_named
from jobs.preflight_process import Progress, check_process
from toolkit.config_modules.base import Location
from toolkit.config_modules.datasets import DatasetConfig
from toolkit.config_modules.documents import in_one_line, read_document, split_key, written
from toolkit.config_modules.loading import LoadedJob, load_job, run_folder
from toolkit.config_modules.lookup import find_config
from toolkit.config_modules.process import CaptionProcess, DiffusionProcess, EvalProcess, TrainProcess
from toolkit.data.dataset_list import is_list
from toolkit.errors import Problem, UserError
from toolkit.paths import resolve_path
from toolkit.preflight.report import JobReport
from toolkit.text import count

# Pictures of a job that is wrong otherwise are looked at too; their sizes do not matter for that.
_ANY_MULTIPLE = 8
_UNREADY = re.compile(r"\[name\]|\$\{")  # in a model's name: what it will be is not known
TITLES = {"lora": "LoRA", "locon": "LoCon", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}


def check_files(
    names: Sequence[str],
    name_tag: str | None,
    *,
    full: bool = False,
    rescan: bool = False,
    progress: Progress | None = None,
    look_closer: Callable[[LoadedJob, JobReport], None] | None = None,
) -> list[JobReport]:
    """A report for each job file; nothing is raised. rescan: see LoadedJob.

    look_closer adds what is asked for beside the check to the report of a valid job.
    """
    reports, jobs = [], []
    for name in names:
        try:
            job = replace(load_job(name, name_tag), rescan=rescan)
        except UserError as error:
            rest = list(_rest_of_broken(name, full, progress))
            reports.append(JobReport(str(name), problems=[*error.problems, *rest]))
        else:
            jobs.append(job)
            reports.append(check_job(job, full=full, progress=progress))
            if look_closer is not None:
                look_closer(job, reports[-1])
    for problem in same_folders(jobs):
        report = next(each for each in reversed(reports) if each.file == problem.file)
        report.problems.append(problem)
    return reports


def check_job(
    job: LoadedJob, *, full: bool = False, running: bool = False, progress: Progress | None = None
) -> JobReport:
    """What can be found out about a valid job; see check_process."""
    processes = [
        check_process(job, index, full=full, running=running, progress=progress)
        for index in range(len(job.config.process))
    ]
    return JobReport(
        str(job.path), job.config.name, describe(job), notes=list(job.notes), processes=processes
    )


def require_ready(jobs: Sequence[LoadedJob]) -> None:
    """The quick check of every job of a command line, before the first starts. Raises UserError.

    The model of a later job may be what an earlier one is about to make, so it is judged when that begins.
    """
    problems = []
    for index, job in enumerate(jobs):
        found = check_job(job, running=True).all_problems
        problems += [each for each in found if index == 0 or not each.code.startswith("model.")]
    if problems:
        raise UserError(problems)


def _rest_of_broken(name: str, full: bool, progress: Progress | None) -> Iterator[Problem]:
    """What is wrong with models and pictures of a job file that is itself wrong, as far as it can be read."""
    try:
        document = read_document(find_config(name))
    except UserError:
        return
    processes = _raw_processes(document.data)
    for index in range(len(processes)):
        place: Location = ("config", "process", index, *split_key(MODEL_KEY))
        model = written(document.data, place)
        if not isinstance(model, str) or not model or _UNREADY.search(model):
            continue
        key = f"process[{index}].{MODEL_KEY}" if len(processes) > 1 else MODEL_KEY
        file, line, value = str(document.path), document.line(place), written(document.raw, place)
        for problem in check_named(model):
            yield in_one_line(replace(problem, file=file, line=line, key=key, value=value))
    yield from _pictures_of_broken(processes, full, progress)


def _pictures_of_broken(processes: Sequence[Any], full: bool, progress: Progress | None) -> Iterator[Problem]:
    sections = []
    for entry in _raw_datasets(processes):
        try:
            section = DatasetConfig.model_validate(entry)
        except ValidationError:
            continue  # told already
        path = resolve_path(section.folder_path)
        if path.is_dir() or (is_list(path) and path.is_file()):
            sections.append(section)
    shown = None if progress is None else progress("pictures")
    scans = build.scan_each(sections, size_multiple=_ANY_MULTIPLE, decode=full, progress=shown)
    for _, scan in scans:
        yield from scan.problems


def _raw_processes(data: Any) -> list[Any]:
    body = data.get("config") if isinstance(data, Mapping) else None
    processes = body.get("process") if isinstance(body, Mapping) else None
    return processes if isinstance(processes, list) else []


def _raw_datasets(processes: Sequence[Any]) -> Iterator[Any]:
    for process in processes:
        datasets = process.get("datasets") if isinstance(process, Mapping) else None
        yield from datasets if isinstance(datasets, list) else []


def same_folders(jobs: Sequence[LoadedJob]) -> Iterator[Problem]:
    """A problem for each run of a job that an earlier job of the command line would write too."""
    owners: dict[Path, tuple[int, LoadedJob]] = {}
    for index, job in enumerate(jobs):
        for process in job.config.process:
            folder = run_folder(process, job.config.name)
            if folder is None:
                continue
            first, owner = owners.setdefault(folder, (index, job))
            if first != index:
                yield Problem(
                    "config.same_run",
                    f"writes the run folder of {owner.path}: {folder}",
                    file=str(job.path),
                    remedy="give it another name: config.name, or --name for [name]",
                )


def describe(job: LoadedJob) -> str:
    """One line on what a job would do."""
    parts = []
    for process in job.config.process:
        if process.type == "to_folder":
            parts.append(f"to_folder, {count(len(process.generate.requests()), 'picture')}")
            continue
        if isinstance(process, EvalProcess | CaptionProcess):
            section = process.eval if isinstance(process, EvalProcess) else process.caption
            parts.append(f"{process.type}, {count(len(section.dataset_path), 'dataset')}")
            continue
        kind: str = process.type
        if process.type != "vae":
            kind += f" ({_trained(process)})"
        data = (
            count(len(process.slider.targets), "target")
            if process.type == "slider"
            else count(len(process.datasets), "dataset")
        )
        parts.append(f"{kind}, {count(process.train.steps, 'step')}, {data}")
    return f"{job.path}: {job.config.job} '{job.config.name}': {'; '.join(parts)}"


def _trained(process: DiffusionProcess) -> str:
    """What a diffusion training trains, in a few words."""
    embedding = process.embedding if isinstance(process, TrainProcess) else None
    network = process.network
    parts = [f"{TITLES[network.type]}, rank {network.rank}"] if network else []
    parts += [f"embedding '{embedding.trigger}', {count(embedding.tokens, 'vector')}"] if embedding else []
    return " and ".join(parts) or "full model"
