"""The API for datasets: list, make, rename and delete them; and for the trash."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from web.dataset_models import DatasetIn, DatasetList, DatasetOut, DeletedOut, LastEvalOut, TrashOut
from web.datasets.library import DatasetSummary
from web.datasets.trash import Deleted
from web.evaluations.files import path_of
from web.evaluations.queueing import library_of
from web.evaluations.reports import ReportInfo
from web.models import errors
from web.problems import conflict
from web.queue.jobs import iso
from web.services import Served, Services

router = APIRouter(prefix="/api", tags=["datasets"], responses=errors())


def changed(services: Services, name: str) -> None:
    """Tell every open page that a dataset is another one now."""
    services.doorbell.ring(["datasets", f"dataset-{name}"])


def newest_reports(services: Services) -> dict[Path, ReportInfo]:
    """The newest report of each dataset, by its folder."""
    found: dict[Path, ReportInfo] = {}
    preferences = services.preferences
    for info in services.reports.all(preferences.output_root, preferences.datasets_root):
        for folder in info.datasets:
            found.setdefault(folder, info)
    return found


def check_unused(services: Services, name: str) -> None:
    """Raise 409 if a job that runs or waits names the folder of a dataset."""
    folder = library_of(services).folder(name)
    user = services.store.namer_of([str(folder), f"{folder.parent.name}/{name}"])
    if user is not None:
        does, remedy = "runs", "stop it first"
        if user.status == "queued":
            does, remedy = "waits", "take it out of the queue first"
        raise conflict(f"the job {user.name} {does} and may use this dataset; {remedy}")


def dataset_json(services: Services, summary: DatasetSummary, report: ReportInfo | None) -> DatasetOut:
    """A dataset as the API shows it."""
    last = None
    if report is not None:
        last = LastEvalOut(
            model=report.model, at=iso(report.mtime) or "", path=path_of(services, report.path)
        )
    return DatasetOut(
        name=summary.name, num_pictures=summary.num_pictures, num_captioned=summary.num_captioned,
        num_bytes=summary.num_bytes, changed_at=iso(summary.changed_at) or "", last_eval=last,
    )  # fmt: skip


def deleted_json(deleted: Deleted) -> DeletedOut:
    """A deletion as the API shows it."""
    return DeletedOut(
        id=deleted.id, dataset=deleted.dataset, files=list(deleted.files), deleted_at=iso(deleted.at) or "",
        num_bytes=deleted.num_bytes,
    )  # fmt: skip


@router.get("/datasets", response_model=DatasetList)
def list_datasets(services: Served) -> Response:
    """Every dataset."""
    library, reports = library_of(services), newest_reports(services)
    listed = [
        dataset_json(services, summary, reports.get(library.root / summary.name))
        for summary in library.summaries()
    ]
    return JSONResponse(DatasetList(datasets=listed, links=library.links()).model_dump(mode="json"))


@router.post("/datasets", response_model=DatasetOut, status_code=201, responses=errors(409))
def create_dataset(body: DatasetIn, services: Served) -> Response:
    """Make an empty dataset."""
    library = library_of(services)
    library.create(body.name)
    changed(services, body.name)
    made = dataset_json(services, library.summary(body.name), None)
    location = f"{services.settings.root_path}/api/datasets/{body.name}"
    return JSONResponse(made.model_dump(), 201, headers={"Location": location})


@router.get("/datasets/{name}", response_model=DatasetOut, responses=errors(404))
def read_dataset(name: str, services: Served) -> DatasetOut:
    """A dataset at a glance."""
    library = library_of(services)
    folder = library.folder(name)
    return dataset_json(services, library.summary(name), newest_reports(services).get(folder))


@router.patch("/datasets/{name}", response_model=DatasetOut, responses=errors(404, 409))
def rename_dataset(name: str, body: DatasetIn, services: Served) -> DatasetOut:
    """Give a dataset another name."""
    check_unused(services, name)
    library = library_of(services)
    library.rename(name, body.name)
    changed(services, name)
    return dataset_json(services, library.summary(body.name), None)


@router.delete("/datasets/{name}", status_code=204, responses=errors(404, 409))
def delete_dataset(name: str, services: Served) -> Response:
    """Move a dataset to the trash; the header Trash-Id says what restores it."""
    check_unused(services, name)
    identifier = library_of(services).delete(name)
    changed(services, name)
    return Response(status_code=204, headers={"Trash-Id": identifier})


@router.get("/trash", response_model=TrashOut)
def list_trash(
    services: Served,
    dataset: Annotated[str | None, Query(max_length=300, description="Only of this one.")] = None,
) -> TrashOut:
    """What was deleted from datasets and can be restored."""
    found = library_of(services).trash.all()
    return TrashOut(deleted=[deleted_json(each) for each in found if dataset in (None, each.dataset)])


@router.post("/trash/{identifier}/restore", response_model=DeletedOut, responses=errors(404, 409))
def restore_deleted(identifier: str, services: Served) -> DeletedOut:
    """Put back what was deleted."""
    deleted = library_of(services).trash.restore(identifier)
    changed(services, deleted.dataset)
    return deleted_json(deleted)


@router.delete("/trash/{identifier}", status_code=204, responses=errors(404))
def erase_deleted(identifier: str, services: Served) -> Response:
    """Erase something from the trash for good."""
    library_of(services).trash.erase(identifier)
    return Response(status_code=204)
