"""What users do to jobs, as one call each; shared by the API and the pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import ConfigError
from toolkit.runs import atomic
from toolkit.runs.lock import read_holder
from web.configs import CheckedConfig, as_text, bad_job_name, check_config, with_name
from web.environment import job_environment
from web.forms import starts
from web.problems import ApiError, conflict, invalid, of_user_error
from web.queue.devices import parse_devices
from web.queue.jobs import Job
from web.queue.listing import JobQuery, list_jobs
from web.queue.states import ACTIVE, StopMode
from web.services import Services


def check(services: Services, text: str, name: str | None = None) -> CheckedConfig:
    """What a config says and what is wrong with it, for this server's folders and environment."""
    return check_config(
        text, name=name, environment=job_environment(()), output_root=services.preferences.output_root
    )


def config_text(config: Mapping[str, Any] | None, config_yaml: str | None) -> str:
    """The one config of a request. Raises 422 if there is none, or two."""
    if (config is None) == (config_yaml is None):
        raise invalid("give either config or config_yaml", "/config")
    return config_yaml if config_yaml is not None else as_text(config or {})


def choose_devices(services: Services, names: Sequence[str] | None) -> tuple[str, ...]:
    """The devices of a request; by default the first lane's. Raises 422."""
    try:
        return parse_devices(names) if names else services.settings.devices[:1]
    except ValueError as error:
        raise invalid(str(error), "/devices") from None


def create_job(
    services: Services, text: str, *, name: str | None = None, kind: str | None = None,
    devices: Sequence[str] | None = None, launcher: Mapping[str, Any] | None = None, key: str | None = None,
) -> Job:  # fmt: skip
    """A draft from a config that need not be able to run yet. Raises 409, 422."""
    found_name, found_kind = _identity(services, text, name, kind)
    chosen = choose_devices(services, devices)
    return services.store.create(found_name, found_kind, text, chosen, launcher=launcher, key=key)


def edit_job(
    services: Services, job_id: str, text: str, *, name: str | None = None, kind: str | None = None,
    devices: Sequence[str] | None = None, launcher: Mapping[str, Any] | None = None,
    if_match: str | None = None,
) -> Job:  # fmt: skip
    """Another config for a job that does not wait or run. Raises 404, 409, 412, 422."""
    job = services.store.get(job_id)
    found_name, found_kind = _identity(services, text, name, kind, default=job.name)
    chosen = choose_devices(services, devices) if devices else job.devices
    return services.store.edit(
        job_id,
        name=found_name,
        kind=found_kind,
        text=text,
        devices=chosen,
        launcher=launcher,
        if_match=if_match,
    )


def clone_job(services: Services, job_id: str, name: str | None = None, key: str | None = None) -> Job:
    """A new draft with the config of another job and a name of its own. Raises 404, 409, 422."""
    job = services.store.get(job_id)
    text = services.store.config(job_id)
    if name is None and key is not None:
        # The same when it is asked for again: its key finds what was made.
        name = starts.fitting(job.name, "_copy")
    elif name is None:
        name = free_name(services, job.name, "_copy")
    return create_job(
        services, with_name(text, name), name=name, devices=job.devices, launcher=job.launcher, key=key
    )


def free_name(services: Services, wanted: str, ending: str = "") -> str:
    """wanted + ending as a name for a new job: one that fits, and that no job has yet."""
    numbered = f"{ending}_9999"
    shared = starts.fitting(wanted, numbered).removesuffix(numbered)  # what all of its names begin with
    found, _ = list_jobs(services.database, JobQuery(text=shared, limit=500))
    return starts.free_name(wanted, {job.name for job in found}, ending)


def enqueue_job(services: Services, job_id: str, *, first: bool = False, start_queue: bool = True) -> Job:
    """Put a job into the queue with its config as it is now. Raises 404, 409, and 422 if it cannot run."""
    job = services.store.get(job_id)
    text = services.store.config(job_id)
    found = check(services, text, job.name)
    if found.problems:
        raise of_user_error(ConfigError(found.problems))
    folders = [str(folder) for folder in found.run_folders]
    job = services.store.enqueue(job_id, text, folders, start_queue=start_queue)
    if first:
        services.lanes.move([(job_id, None)])
        job = services.store.get(job_id)
    services.supervisor.wake()
    return job


def stop_job(services: Services, job_id: str, mode: StopMode, *, requeue: bool = False) -> Job:
    """Stop a job that runs. Raises 404, 409."""
    job = services.store.request_stop(job_id, mode, requeue=requeue)
    services.supervisor.wake()
    return job


def command_job(services: Services, job_id: str, command: Literal["save", "sample"]) -> Job:
    """Tell a job that runs to save or sample now. Raises 404, 409."""
    job = services.store.get(job_id)
    if job.status not in ACTIVE:
        raise conflict(f"the job is {job.status} and does not run")
    if not services.supervisor.command(job, command):
        raise conflict("the job has no run yet that could obey")
    services.store.note(job, f"{command} asked for")
    return job


def mark_stopped(services: Services, job_id: str) -> Job:
    """Note the end of a job whose processes are gone for certain. Raises 404, 409."""
    job = services.store.get(job_id)
    if job.status not in ACTIVE:
        raise conflict(f"the job is {job.status} and does not run")
    if not services.supervisor.is_proven_dead(job):
        raise conflict("a process of the job still runs, or it cannot be seen from here whether one does")
    return services.store.finish(job, "stopped", "marked as stopped")


def delete_job(services: Services, job_id: str, *, files: bool = False) -> None:
    """Delete a job that does not wait or run; with `files` the folders of its runs too. Raises 404, 409."""
    job = services.store.get(job_id)
    root = services.preferences.output_root
    folders = [Path(folder) for folder in job.run_folders] if files else []
    doomed = [folder for folder in folders if folder.is_dir() and not folder.is_symlink()]
    for folder in doomed:
        if folder.resolve() == root or not folder.resolve().is_relative_to(root):
            raise conflict(f"{folder} lies outside the folder of runs and is not deleted")
        holder = read_holder(folder / "run.lock")
        if holder is not None and holder.process.is_running() is not False:
            raise conflict(f"{folder} is in use by {holder}")
        other = services.store.user_of(str(folder), except_id=job_id)
        if other is not None:
            raise conflict(f"{folder} is also that of the job {other}")
    services.store.delete(job_id)
    services.metrics.forget(folder / "metrics.jsonl" for folder in folders)
    for folder in [services.settings.jobs_root / job.id, *doomed]:
        if folder.is_dir():
            atomic.remove(folder)


def _identity(
    services: Services, text: str, name: str | None, kind: str | None, default: str | None = None
) -> tuple[str, str]:
    """(name, kind) of a job with this config. Raises 422 if they are not told, or told twice in two ways."""
    found = check(services, text, name)
    if any(problem.code == "web.too_large" for problem in found.problems):
        raise of_user_error(ConfigError(found.problems))
    chosen = found.name or name or default
    if chosen is None:
        raise invalid("the job has no name: set config.name, or give name", "/name")
    if name is not None and name != chosen:
        raise invalid(f"the config calls the job {chosen!r}, the request {name!r}", "/name")
    reason = bad_job_name(chosen)
    if reason is not None:
        raise invalid(f"the name {chosen!r} {reason}", "/name")
    if kind is not None and kind != found.kind:
        raise ApiError(422, "web.invalid", f"the config describes a job of kind {found.kind}, not {kind}")
    return chosen, found.kind
