"""What an import would do: each job and each run of ai-toolkit, and what becomes of it. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import Problem
from web.configs import CheckedConfig, bad_job_name
from web.importing.configs import BadConfig, from_json, name_in, steps_in, text_of
from web.importing.database import ForeignDatabase, ForeignJob
from web.importing.folders import ForeignRun
from web.queue.states import State

Check = Callable[[str, str], CheckedConfig]  # (text, name) -> what is wrong with it


@dataclass(slots=True, kw_only=True)
class Entry:
    """A job of ai-toolkit's. skipped: why it is not imported; "" means that it is, as a job called `name`."""

    origin: str  # what it was called there
    id: str = ""  # of the job that it became
    keys: tuple[str, ...]  # by which it is known again
    name: str = ""
    kind: str = "train"
    state: State = "stopped"
    reason: str = ""
    text: str = ""
    devices: tuple[str, ...] = ()
    step: int = 0
    total_steps: int | None = None
    folder: Path | None = None
    created_at: float | None = None
    updated_at: float | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    skipped: str = ""
    adds_run_to: str = ""  # the job that it became before, without its run folder


@dataclass(slots=True, kw_only=True)
class Plan:
    """Everything an import would do. settings: of the other UI, to look at. notes: what was left out."""

    source: Path
    entries: list[Entry] = field(default_factory=list)
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def imported(self) -> list[Entry]:
        """What becomes a job."""
        return [entry for entry in self.entries if not entry.skipped]


@dataclass(slots=True, kw_only=True)
class Here:
    """What there is here already. known: key -> name of its job. users: run folder -> name of its job.

    without_run: the names of imported jobs that have no run folder and never ran here.
    """

    names: set[str]
    known: Mapping[str, str]
    users: Mapping[str, str]
    without_run: Collection[str]
    devices: Sequence[str]


def make_plan(
    source: Path, database: ForeignDatabase | None, runs: Sequence[ForeignRun], here: Here, check: Check
) -> Plan:
    """What becomes of the jobs of a database, and of the run folders, which need not all have one."""
    plan = Plan(source=source)
    jobs = database.jobs if database else []
    owned = _owned(jobs, runs)
    plan.entries = [_of_job(job, owned.get(job.id), here, check) for job in jobs]
    taken = {entry.folder for entry in plan.entries}
    plan.entries += [_of_run(run, here, check) for run in runs if run.path not in taken]
    if database is not None:
        plan.settings = database.settings
        if database.in_use:
            plan.notes.append(
                f"{database.path} is in use, or its program was killed: its last commit was read"
            )
        if database.evaluations:
            plan.notes.append(
                f"{database.evaluations} evaluations stay there: only jobs and runs are imported"
            )
    return plan


def folder_key(path: Path) -> str:
    """By what a run folder is known again."""
    return f"folder:{path}"


def _owned(jobs: Sequence[ForeignJob], runs: Sequence[ForeignRun]) -> dict[str, ForeignRun]:
    """id of a job -> its run folder.

    The trainer writes where its config says, the UI where its database says: mostly the same. Where they
    differ, a job of that name goes before one whose config has it.
    """
    left = {run.name: run for run in reversed(runs)}
    written = {job.id: name_in(_config_of(job)[0]) or job.name for job in jobs}
    claims = [(job.id, job.name) for job in jobs if written[job.id] == job.name]
    claims += [(job.id, name) for job in jobs for name in (written[job.id], job.name)]
    found: dict[str, ForeignRun] = {}
    for job_id, name in claims:
        if job_id not in found and name in left:
            found[job_id] = left.pop(name)
    return found


def _of_job(job: ForeignJob, run: ForeignRun | None, here: Here, check: Check) -> Entry:
    """The entry of a row of the database, with its run folder if there is one."""
    config, wrong = _config_of(job)
    keys = (f"job:{job.id}", *((folder_key(run.path),) if run else ()))
    entry = Entry(origin=job.name or job.id, keys=keys, created_at=job.created_at, updated_at=job.updated_at)
    entry.folder = run.path if run else None
    if _is_known(entry, here):
        return entry
    if config is None:
        entry.skipped = wrong
        return entry
    entry.state, entry.reason = _state_of(job, run)
    entry.step = job.step or (run.step if run else 0)
    entry.total_steps = job.total_steps
    entry.devices = _devices(job.gpu_ids, here, entry)
    if name_in(config) not in (None, job.name):
        entry.notes.append(f"its config calls it {name_in(config)!r:.100}, the database {job.name!r:.100}")
    _complete(entry, job.name, config, here, check)
    return entry


def _config_of(job: ForeignJob) -> tuple[dict[str, Any] | None, str]:
    """(config, "") or (None, why there is none)."""
    if not job.config:
        return None, f"its config is too large ({job.size} bytes)" if job.size else "it has no config"
    try:
        return from_json(job.config), ""
    except BadConfig as error:
        return None, f"its config in {error}"


def _of_run(run: ForeignRun, here: Here, check: Check) -> Entry:
    """The entry of a run folder that no row of a database speaks of."""
    entry = Entry(
        origin=run.name, keys=(folder_key(run.path),), folder=run.path, step=run.step,
        created_at=run.started_at, updated_at=run.changed_at, devices=tuple(here.devices[:1]),
    )  # fmt: skip
    if _is_known(entry, here):
        return entry
    steps = f"{run.num_models} models, {run.num_samples} previews"
    if run.finished:
        entry.state, entry.reason = "completed", f"finished in ai-toolkit; {steps}"
    else:
        entry.state, entry.reason = "stopped", f"ended in ai-toolkit at step {run.step}; {steps}"
    if run.config is None:
        entry.notes.append(f"{run.config_problem}: the job's config holds its name only")
    _complete(entry, run.job_name, run.config or {"job": "extension"}, here, check)
    if run.finished:
        entry.step = max(entry.step, entry.total_steps or 0)
    return entry


def _is_known(entry: Entry, here: Here) -> bool:
    """Whether it was imported before, or its folder is that of a job; noted in `skipped`."""
    known = next((here.known[key] for key in entry.keys if key in here.known), None)
    user = here.users.get(str(entry.folder))
    if known is not None:
        entry.skipped = f"it was imported before, as {known}"
        if entry.folder is not None and user is None and known in here.without_run:
            entry.adds_run_to = known
            entry.skipped += "; its run is shown there now"
    elif user is not None:
        entry.skipped = f"its folder is that of the job {user}"
    return bool(entry.skipped)


def _state_of(job: ForeignJob, run: ForeignRun | None) -> tuple[State, str]:
    """The state here, and the reason that is shown with it."""
    said = f": {job.info}" if job.info else ""
    if job.status == "completed":
        return "completed", f"finished in ai-toolkit{said}"
    if job.status == "error":
        return "failed", f"failed in ai-toolkit{said}"
    if job.status == "queued":
        return "draft", "waited in ai-toolkit's queue; here it waits when it is queued here"
    if job.status in ("running", "stopping"):
        return (
            "stopped",
            f"was {job.status} in ai-toolkit when it was imported; what runs there is not known here",
        )
    if job.status == "stopped" and not job.step and run is None:
        return "draft", "never ran in ai-toolkit"
    if job.status == "stopped":
        return "stopped", f"stopped in ai-toolkit{said}"
    return "stopped", f"was {job.status!r:.60} in ai-toolkit, a state that is not known here"


def _devices(gpu_ids: str, here: Here, entry: Entry) -> tuple[str, ...]:
    """The lanes for ai-toolkit's "0" or "0,1"; the first lane where this machine has no such GPU."""
    wanted = [f"gpu:{part.strip()}" for part in gpu_ids.split(",") if part.strip()]
    found = tuple(device for device in here.devices if device in wanted)
    if wanted and len(found) == len(set(wanted)):
        return found
    first = tuple(here.devices[:1])
    entry.notes.append(f"its GPUs {gpu_ids!r:.40} are not all here: it gets {', '.join(first)}")
    return first


def _complete(entry: Entry, wanted: str, config: dict[str, Any], here: Here, check: Check) -> None:
    """Fill in the name, the config under that name, and what our check says of it."""
    entry.name = _free_name(wanted, here.names)
    if entry.name != wanted:
        why = "a job of this name is here" if bad_job_name(wanted) is None else "the name cannot be a job's"
        entry.notes.append(f"imported as {entry.name}: {why}")
    try:
        entry.text = text_of(config, entry.name)
    except BadConfig as error:
        entry.skipped = f"its config {error}"
        return
    here.names.add(entry.name)
    found = check(entry.text, entry.name)
    entry.kind, entry.problems = found.kind[:40], found.problems
    entry.total_steps = entry.total_steps or found.total_steps or steps_in(config)
    entry.notes += found.notes


def _free_name(wanted: str, taken: Collection[str]) -> str:
    """A name that can be a job's and is not taken: the wanted one, or one that is like it."""
    name = wanted
    if bad_job_name(name) is not None:
        name = _cut(re.sub(r"[^\w .-]+", "_", name).strip(" ._-"))
        name = name if bad_job_name(name) is None else "imported"
    base, number = name, 1
    while name in taken:
        tail = "_imported" if number == 1 else f"_imported_{number}"
        name, number = _cut(base) + tail, number + 1
    return name


def _cut(name: str) -> str:
    """The beginning of a name that leaves room for `_imported_1234`."""
    return name[:80].encode()[:130].decode("utf-8", "ignore").rstrip(" .")
