"""Making and changing jobs: a form and a YAML text of the same config, checked by the server."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response
from starlette.datastructures import UploadFile

from web import actions
from web.configs import MAX_BYTES, with_name
from web.forms import starts
from web.forms.draft import Draft, form_view, posted_text, with_entry, without_entry
from web.forms.drawing import drawing_text
from web.forms.values import process_of
from web.forms.yaml_text import parse
from web.preflight import check_text
from web.problems import ApiError, invalid, not_found
from web.queue.devices import parse_devices
from web.queue.jobs import Job
from web.routes.page_route import back_to, page_router
from web.routes.results import shown_run
from web.runs.folders import Number
from web.runs.results import list_results
from web.services import Served, Services

router = page_router()
MOST_PROCESSES = 64
_EMPTY = """job: train
config:
  name: untitled
  process:
    - type: sd_trainer
      training_folder: {folder}
      model:
        name_or_path: stable-diffusion-v1-5/stable-diffusion-v1-5
      datasets:
        - folder_path: ""
      network:
        type: lora
        linear: 16
        linear_alpha: 16
      train:
        steps: 2000
        lr: 1e-4
"""


async def _posted(request: Request) -> dict[str, list[str]]:
    """The form of a request. Raises 422 for files in it."""
    form = await request.form(max_files=0, max_fields=5000, max_part_size=2 * MAX_BYTES)
    found: dict[str, list[str]] = {}
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            raise invalid("this form takes no files")
        found.setdefault(key, []).append(value)
    return found


Posted = Annotated[dict[str, list[str]], Depends(_posted)]
Name = Annotated[str, Query(max_length=200)]


@router.get("/jobs/new")
def new_job(
    request: Request, services: Served, *, example: Name = "", dataset: Name = "", clone: Name = "",
    draw: Name = "", file: Annotated[str, Query(max_length=255)] = "", run: Number = 1, empty: bool = False,
    view: Name = "form",
) -> Response:  # fmt: skip
    """Choose what to begin with, or begin; draw: with the model `file` that this job has saved."""
    if not (example or dataset or clone or draw or empty):
        context = {
            "examples": starts.list_examples(), "has_gpu": _first_gpu(services) is not None,
            "datasets": [path.name for path in starts.list_datasets(services.preferences.datasets_root)],
        }  # fmt: skip
        return services.pages.page(request, "job_new.html", context)
    if draw:
        draft = _drawing(services, draw, run, file)
    else:
        draft = _cloned(services, clone) if clone else _started(services, example, dataset)
    draft.view = "yaml" if view == "yaml" else "form"
    return _page(request, services, draft)


@router.get("/jobs/{job_id}/edit")
def edit_job(job_id: str, request: Request, services: Served, view: Name = "form") -> Response:
    """The config of a job, to be changed."""
    job, text = services.store.get(job_id), services.store.config(job_id)
    draft = Draft(
        text=text, base=text, devices=job.devices, job_id=job.id, etag=job.etag,
        accelerate=str(job.launcher.get("accelerate", 0)), view="yaml" if view == "yaml" else "form",
    )  # fmt: skip
    return _page(request, services, draft)


@router.post("/jobs/edit")
def change_job(request: Request, services: Served, posted: Posted) -> Response:
    """What the buttons of the form do: show it as YAML, add an entry, check, review, save, start."""
    values = {key: listed[-1] for key, listed in posted.items()}
    draft = _draft(services, values, posted.get("device", []))
    job = _job_of(services, draft)
    is_gone = bool(values.get("job")) and job is None
    action, _, name = values.get("action", "save").partition(":")
    try:
        if values.get("view") == "form":
            draft.text = posted_text(draft.text, values)
        if action == "add":
            draft.text = with_entry(draft.text, name)
        elif action == "remove":
            draft.text = without_entry(draft.text, name)
        elif action in ("form", "yaml"):
            draft.view = action
        elif draft.problems:
            listed = [{"pointer": key, "detail": said} for key, said in draft.problems.items()]
            raise invalid("the job cannot run like that", errors=listed)
        elif action == "check" and not is_gone:
            draft.checked = check_text(services.settings, draft.text, draft.devices)
        elif action == "review" and job is not None:
            _review(draft, job)
        elif not is_gone:
            return _saved(request, services, draft, start=action == "start")
    except ApiError as error:
        draft.errors += [error.detail] if not error.errors else [
            f"{each.get('pointer', '')}: {each['detail']}".lstrip("/: ") for each in error.errors
        ]  # fmt: skip
        return _page(request, services, draft, status=error.status)
    return _page(request, services, draft, status=404 if is_gone else 200)


def _draft(services: Services, values: dict[str, str], devices: list[str]) -> Draft:
    draft = Draft(
        text=values.get("text", "").replace("\r\n", "\n"), devices=tuple(devices),
        accelerate=values.get("accelerate", "").strip() or "0", job_id=values.get("job", ""),
        etag=values.get("etag", ""), view="yaml" if values.get("view") == "yaml" else "form",
    )  # fmt: skip
    try:
        draft.devices = parse_devices(devices) or services.settings.devices[:1]
    except ValueError as error:
        draft.problems["device"] = str(error)
    count = draft.accelerate
    if not (count.isascii() and count.isdigit() and len(count) < 4 and int(count) <= MOST_PROCESSES):
        draft.problems["accelerate"] = f"must be a number up to {MOST_PROCESSES}"
    return draft


def _job_of(services: Services, draft: Draft) -> Job | None:
    """The job that a draft changes, with its text as the base; of one that is gone, it makes a new one."""
    if not draft.job_id:
        return None
    try:
        job = services.store.get(draft.job_id)
        draft.base = services.store.config(draft.job_id)
    except ApiError as error:
        if error.status != 404:
            raise
        draft.job_id = draft.etag = ""
        draft.base, draft.review = None, False
        draft.said = "The job was deleted meanwhile. What you typed is kept: saving it makes a new job."
        return None
    return job


def _review(draft: Draft, job: Job) -> None:
    # What is saved from here on is meant for the text that is shown beside it.
    if draft.etag != job.etag:
        draft.said = (
            "The job was changed elsewhere since you began. Below is what you change of it as it is now."
        )
    draft.review, draft.etag = True, job.etag


def _saved(request: Request, services: Served, draft: Draft, *, start: bool) -> Response:
    launcher = {"kind": "local", "accelerate": int(draft.accelerate)}
    if draft.job_id:
        job = actions.edit_job(
            services, draft.job_id, draft.text, devices=draft.devices, launcher=launcher, if_match=draft.etag
        )
    else:
        named = actions.check(services, draft.text).name
        name = None if named else actions.free_name(services, "untitled")
        job = actions.create_job(services, draft.text, name=name, devices=draft.devices, launcher=launcher)
    draft.job_id, draft.etag, draft.base = job.id, job.etag, draft.text
    if start:
        try:
            actions.enqueue_job(services, job.id)
        except ApiError:
            draft.said = "Saved, but it cannot be queued before the problems below are solved."
            raise
    return back_to(request, f"/jobs/{job.id}")


def _page(request: Request, services: Services, draft: Draft, status: int = 200) -> Response:
    job = _job_of(services, draft)
    view = form_view(services, draft)
    if view.cards is None:
        draft.view = "yaml"
    context: dict[str, Any] = {
        "draft": draft, "form": view, "lanes": services.settings.devices, "job": job,
        "changes": draft.differences() if draft.review else [],
        "datasets": [str(path) for path in starts.list_datasets(services.preferences.datasets_root)],
    }  # fmt: skip
    return services.pages.page(request, "job_edit.html", context, status=status)


def _cloned(services: Services, job_id: str) -> Draft:
    job: Job = services.store.get(job_id)
    name = actions.free_name(services, job.name, "_copy")
    text = with_name(services.store.config(job_id), name)
    return Draft(text=text, devices=job.devices, accelerate=str(job.launcher.get("accelerate", 0)))


def _drawing(services: Services, job_id: str, number: int, file: str) -> Draft:
    job = services.store.get(job_id)
    folder, text = shown_run(services, job, number), services.store.ran(job_id)
    saved = [each.name for each in list_results(folder) if each.kind in ("model", "folder")]
    if folder is None or file not in saved:
        raise not_found(f"a model {file} of this job")
    name = actions.free_name(services, job.name, "_pictures")
    text = drawing_text(
        text, actions.check(services, text, job.name), number, folder.path / file,
        name=name, output_root=services.preferences.output_root,
    )  # fmt: skip
    return Draft(text=text, devices=job.devices[:1])


def _started(services: Services, example: str, dataset: str) -> Draft:
    gpu, root = _first_gpu(services), services.preferences.output_root
    datasets = {path.name: path for path in starts.list_datasets(services.preferences.datasets_root)}
    if dataset and dataset not in datasets:
        raise not_found(f"dataset {dataset}")
    if not example and not dataset:
        return Draft(text=_EMPTY.format(folder=root), devices=(gpu or services.settings.devices[0],))
    source = example or ("train_lora_sd15" if gpu else "demo")
    text = starts.example_text(source)
    if text is None:
        raise not_found(f"example {source}")
    process, _ = process_of(parse(text))
    on_gpu = gpu is not None and process.get("device") != "cpu"
    text = starts.adapted(
        text, actions.free_name(services, dataset or source), training_folder=root,
        device=None if on_gpu else "cpu",
    )  # fmt: skip
    if dataset:
        text = starts.with_dataset(text, str(datasets[dataset]))
    cpu = next((each for each in services.settings.devices if each.startswith("cpu")), None)
    return Draft(text=text, devices=(gpu if on_gpu else cpu or services.settings.devices[0],))  # type: ignore[arg-type]


def _first_gpu(services: Services) -> str | None:
    return next((each for each in services.settings.devices if not each.startswith("cpu")), None)
