"""Evaluations as jobs of the queue: made from a request, and shown as clients of ai-toolkit know them."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import ConfigError
from web import actions
from web.configs import as_text
from web.dataset_models import EvalIn
from web.datasets.library import Library
from web.evaluations.reports import dataset_folder
from web.evaluations.status import STATUS, EvalStatus
from web.problems import ApiError, conflict, invalid, not_found, of_user_error
from web.queue.devices import parse_devices
from web.queue.jobs import Job, iso
from web.queue.listing import JobQuery, list_jobs
from web.queue.states import ACTIVE, ENDED
from web.services import Services


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A job of kind eval, with what its config says. report: where its report will be."""

    job: Job
    dataset: str
    model: str
    params: Mapping[str, Any]
    report: Path | None

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    @property
    def status(self) -> EvalStatus:
        """Its state in the words of ai-toolkit."""
        return STATUS[self.job.status]

    @property
    def has_report(self) -> bool:
        """Whether the report is there."""
        return self.report is not None and self.report.is_file()


def library_of(services: Services) -> Library:
    """The datasets of this server."""
    return Library(services.preferences.datasets_root, services.settings.data_root)


def dataset_of(services: Services, text: str) -> str:
    """The name of a dataset: given as such, or as a path that leads to its folder. Raises 404."""
    library = library_of(services)
    if "/" not in text:
        library.folder(text)
        return text
    if "\0" in text or len(text) > 4000:
        raise not_found("this dataset")
    path = dataset_folder(text)
    if path.parent != library.root.resolve():
        raise not_found("this dataset")
    library.folder(path.name)
    return path.name


def config_of(services: Services, wanted: EvalIn, name: str, folder: Path) -> dict[str, Any]:
    """The job file of an evaluation. Raises 422."""
    try:
        json.dumps([wanted.model, wanted.model_config_, wanted.lora], ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise invalid("holds signs that are no text", "/model") from None
    model = dict(wanted.model_config_ or {})
    if wanted.model:
        model["name_or_path"] = wanted.model
    if not model.get("name_or_path"):
        raise invalid("name the model: model, or name_or_path in model_config", "/model")
    section: dict[str, Any] = {
        "dataset_path": [str(folder)],
        "batch_size": wanted.batch_size,
        "sample_fraction": wanted.sample_fraction,
        "samples_per_image": wanted.samples_per_image,
        "caption_ablation_compare": wanted.ablation_compare,
        "debug_captions": wanted.debug_captions,
    }
    for key in ("max_samples", "fixed_noise_std", "lora", "seed", "eval_resolution"):
        value = getattr(wanted, key)
        if value is not None:
            section[key] = value
    process = {
        "type": "eval_dataset", "training_folder": str(services.preferences.output_root),
        "model": {key: value for key, value in model.items() if value is not None}, "eval": section,
    }  # fmt: skip
    return {"job": "eval", "config": {"name": name, "process": [process]}}


def queue_evaluation(services: Services, wanted: EvalIn, key: str | None = None) -> Evaluation:
    """Put an evaluation into the queue. Raises 404, 409, 422. With a key seen before: the one made then."""
    dataset = dataset_of(services, wanted.dataset_path)
    folder = library_of(services).folder(dataset)
    devices = _devices(services, wanted.device)
    name = _name(services, dataset, key)
    text = as_text(config_of(services, wanted, name, folder))
    if not services.preferences.output_root.is_dir():
        services.preferences.output_root.mkdir(parents=True)
    # Checked before there is a job: a mistake leaves no draft behind.
    found = actions.check(services, text, name)
    if found.problems:
        raise of_user_error(ConfigError(found.problems))
    job = actions.create_job(services, text, name=name, kind="eval", devices=devices, key=key)
    if job.status == "draft" and job.queued_at is None:
        job = actions.enqueue_job(services, job.id)
    return view(services, job)


def _devices(services: Services, device: str | None) -> tuple[str, ...]:
    """The lane of an evaluation: a name of ours, or cuda as ai-toolkit writes."""
    if not device:
        return services.settings.devices[:1]
    name = re.sub(r"^cuda\b", "gpu", device.strip().lower())
    name = name if ":" in name else f"{name}:0"
    try:
        return parse_devices([name])
    except ValueError as error:
        raise invalid(str(error), "/device") from None


def _name(services: Services, dataset: str, key: str | None) -> str:
    base = re.sub(r"[^A-Za-z0-9._-]+", "_", dataset)[:60].strip("._-") or "dataset"
    if key is not None:
        return f"eval_{base}_{hashlib.sha256(key.encode()).hexdigest()[:10]}"
    name = f"eval_{base}_{time.strftime('%Y%m%d_%H%M%S', time.gmtime())}"
    query = JobQuery(kind="eval", text=name, limit=100)
    taken = {job.name for job in list_jobs(services.database, query)[0]}
    number, found = 1, name
    while found in taken or (services.preferences.output_root / found).exists():
        number += 1
        found = f"{name}_{number}"
    return found


def view(services: Services, job: Job) -> Evaluation:
    """A job of kind eval as an evaluation. Raises 404 for another kind."""
    if job.kind != "eval":
        raise not_found("this evaluation")
    process = _process(services.store.config(job.id))
    section, model = _mapping(process.get("eval")), _mapping(process.get("model"))
    paths = section.get("dataset_path")
    first = paths[0] if isinstance(paths, list) and paths else paths
    folder = process.get("training_folder")
    name = str(process.get("name") or job.name)
    step = section.get("step")
    report = None
    if isinstance(folder, str):
        root = services.preferences.output_root
        place = (dataset_folder(folder) / name).resolve()
        if place.is_relative_to(root) and place != root:
            report = place / f"{name}_{step if isinstance(step, int) else 0:09d}.json"
    params = {**section, "model_config": model}
    return Evaluation(
        job, Path(str(first)).name if first else "", str(model.get("name_or_path") or ""), params, report
    )


def _process(text: str) -> Mapping[str, Any]:
    try:
        body = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe one
    except yaml.YAMLError:
        return {}
    listed = _mapping(_mapping(body).get("config")).get("process")
    return _mapping(listed[0]) if isinstance(listed, list) and listed else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def list_evaluations(services: Services, dataset: str | None = None, limit: int = 50) -> list[Evaluation]:
    """Evaluations, the newest first; of one dataset, if it is named."""
    found: list[Evaluation] = []
    cursor: str | None = None
    while len(found) < limit:
        jobs, cursor = list_jobs(services.database, JobQuery(kind="eval", limit=200, cursor=cursor))
        views = (view(services, job) for job in jobs)
        found += [each for each in views if dataset is None or each.dataset == dataset]
        if cursor is None:
            break
    return found[:limit]


def get_evaluation(services: Services, identifier: str) -> Evaluation:
    """An evaluation. Raises 404."""
    return view(services, services.store.get(identifier))


def result(services: Services, identifier: str) -> dict[str, Any]:
    """The report of an evaluation. Raises 404 while there is none, 500 if it cannot be read."""
    found = get_evaluation(services, identifier)
    if found.report is None or not found.has_report or found.report.is_symlink():
        raise ApiError(404, "web.not_found", "Result not yet available")
    return services.reports.read(found.report)


def cancel(services: Services, identifier: str) -> Evaluation:
    """Take an evaluation out of the queue, or stop it; what it measured is kept. Raises 404, 409."""
    found = get_evaluation(services, identifier)
    if found.job.status == "queued":
        return view(services, services.store.dequeue(identifier))
    if found.job.status in ACTIVE:
        return view(services, actions.stop_job(services, identifier, "save"))
    assert found.job.status in ENDED or found.job.status == "draft"
    raise conflict(f"the evaluation is {found.status} and does not run")


def eval_json(found: Evaluation) -> dict[str, Any]:
    """An evaluation as the API shows it (web/dataset_models.py: EvalJobOut)."""
    job = found.job
    return {
        "id": job.id, "dataset": found.dataset, "model": found.model,
        "params": json.dumps(dict(found.params)), "status": found.status,
        "out_json": str(found.report) if found.has_report else None,
        "info": job.info if job.status in ACTIVE else job.reason, "job_status": job.status, "name": job.name,
        "created_at": iso(job.created_at), "updated_at": iso(job.updated_at),
    }  # fmt: skip
