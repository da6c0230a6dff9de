"""The API for evaluations of datasets, in the form that clients of ai-toolkit know."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse

from web.dataset_models import EvalIn, EvalList, EvalMadeOut, EvalOut, ReportFileOut, ReportFiles
from web.evaluations import queueing
from web.evaluations.files import path_of, read_file
from web.evaluations.queueing import Evaluation, dataset_of, eval_json, library_of
from web.models import errors
from web.services import Served, Services

router = APIRouter(prefix="/api/eval_dataset", tags=["evaluations"], responses=errors())
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=200)]


def made_json(services: Services, made: Evaluation) -> dict[str, Any]:
    """A queued evaluation, and where to look next."""
    root = services.settings.root_path
    base = f"{root}/api/eval_dataset/{made.id}"
    links = {"status": f"{base}/status", "result": f"{base}/result", "page": f"{root}/evaluations/{made.id}"}
    return {"id": made.id, "status": made.status, "links": links}


@router.post("", response_model=EvalMadeOut, responses=errors(404, 409))
def create_evaluation(body: EvalIn, services: Served, key: Key = None) -> Response:
    """Put an evaluation of a dataset's captions into the queue."""
    return JSONResponse(made_json(services, queueing.queue_evaluation(services, body, key)))


@router.get("", response_model=EvalList)
def list_evaluations(
    services: Served,
    dataset: Annotated[str | None, Query(max_length=300)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Response:
    """Evaluations, the newest first."""
    found = queueing.list_evaluations(services, dataset, limit)
    return JSONResponse({"jobs": [eval_json(each) for each in found]})


@router.get("/files", response_model=ReportFiles, responses=errors(404))
def list_reports(services: Served, dataset: Annotated[str | None, Query(max_length=4000)] = None) -> Response:
    """Reports that can be read, of one dataset if it is named; also those that the command line made."""
    preferences = services.preferences
    roots = (preferences.output_root, preferences.datasets_root)
    if dataset is None:
        found = services.reports.all(*roots)
    else:
        folder = library_of(services).folder(dataset_of(services, dataset))
        found = services.reports.of_dataset(folder, *roots)
    listed = [
        ReportFileOut(
            filename=each.path.name, path=path_of(services, each.path), modelName=each.model,
            mtimeMs=round(each.mtime * 1000),
        ).model_dump()
        for each in found
    ]  # fmt: skip
    return JSONResponse({"files": listed})


@router.get("/file", response_model=dict[str, Any], responses=errors(404))
def read_report(
    services: Served, path: Annotated[str, Query(max_length=4000, description="As /files lists it.")]
) -> Response:
    """A report."""
    return JSONResponse(read_file(services, path))


@router.get("/{identifier}/status", response_model=EvalOut, responses=errors(404))
def read_status(identifier: str, services: Served) -> Response:
    """How an evaluation goes."""
    return JSONResponse({"job": eval_json(queueing.get_evaluation(services, identifier))})


@router.get("/{identifier}/result", response_model=dict[str, Any], responses=errors(404))
def read_result(identifier: str, services: Served) -> Response:
    """The report of an evaluation; 404 while there is none."""
    return JSONResponse(queueing.result(services, identifier))


@router.post("/{identifier}/cancel", response_model=EvalOut, status_code=202, responses=errors(404, 409))
def cancel_evaluation(identifier: str, services: Served) -> Response:
    """Take an evaluation out of the queue, or stop it."""
    return JSONResponse({"job": eval_json(queueing.cancel(services, identifier))}, 202)
