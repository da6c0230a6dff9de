"""The pages of evaluations: what was asked for, the form that asks, and reports."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Form, Query, Request, Response
from pydantic import BaseModel, Field, ValidationError

from web.dataset_models import EvalIn
from web.evaluations import queueing
from web.evaluations.files import file_of, path_of
from web.evaluations.queueing import dataset_of, library_of
from web.evaluations.report_page import ReportView, report_view
from web.evaluations.reports import METRICS, Metric
from web.problems import ApiError
from web.routes.page_route import back_to, page_router
from web.services import Served, Services

router = page_router()
MOST_LORAS = 100


@router.get("/evaluations")
def evaluations_page(request: Request, services: Served) -> Response:
    """Evaluations, and every report."""
    preferences = services.preferences
    library = library_of(services)
    reports = services.reports.all(preferences.output_root, preferences.datasets_root)
    context = {
        "evaluations": queueing.list_evaluations(services), "datasets": library.names(),
        "reports": [(path_of(services, each.path), each) for each in reports[:200]],
    }  # fmt: skip
    return services.pages.page(request, "evaluations.html", context, block="listed")


@router.get("/evaluations/report")
def report_page(
    request: Request, services: Served, *,
    path: Annotated[str, Query(max_length=4000)],
    metric: Metric = "log_ratio", flagged: bool = False, page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:  # fmt: skip
    """A report that lies in one of our folders, whoever made it."""
    file = file_of(services, path)
    shown = report_view(services, services.reports.read(file), metric, flagged, page)
    context = _report_context(services, shown, file_path=path) | {"evaluation": None}
    return services.pages.page(request, "evaluation.html", context)


@router.get("/evaluations/{identifier}")
def evaluation_page(
    identifier: str, request: Request, services: Served, *,
    metric: Metric = "log_ratio", flagged: bool = False, page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:  # fmt: skip
    """An evaluation: how it goes, and its report once there is one."""
    found = queueing.get_evaluation(services, identifier)
    shown = None
    if found.report is not None and found.has_report:
        shown = report_view(services, services.reports.read(found.report), metric, flagged, page)
        context = _report_context(services, shown, file_path=path_of(services, found.report))
    else:
        context = _report_context(services, None, file_path="")
    return services.pages.page(request, "evaluation.html", context | {"evaluation": found})


def _report_context(services: Services, shown: ReportView | None, file_path: str) -> dict[str, Any]:
    html = ""
    if file_path:
        beside = file_of(services, file_path).with_suffix(".html")
        html = (
            f"{file_path.removesuffix('.json')}.html" if beside.is_file() and not beside.is_symlink() else ""
        )
    return {"shown": shown, "file_path": file_path, "html_path": html,
            "metrics": [(key, label) for key, (label, _) in METRICS.items()]}  # fmt: skip


@router.post("/evaluations/{identifier}/cancel")
def cancel_form(identifier: str, request: Request, services: Served) -> Response:
    """Take an evaluation out of the queue, or stop it."""
    queueing.cancel(services, identifier)
    return back_to(request, f"/evaluations/{quote(identifier)}")


@router.get("/datasets/{name}/evaluate")
def evaluate_page(name: str, request: Request, services: Served) -> Response:
    """The form that asks for an evaluation."""
    library_of(services).folder(name)
    return _form(request, services, name, EvalForm(ablation_compare=True), [], 200)


class EvalForm(BaseModel):
    """The form as it is sent: texts, whatever they say."""

    model: str = Field("tiny-sd", max_length=1000)
    arch: str = Field("", max_length=40)
    lora: str = Field("", max_length=1000)
    device: str = Field("", max_length=20)
    batch_size: str = Field("1", max_length=20)
    sample_fraction: str = Field("1", max_length=20)
    max_samples: str = Field("", max_length=20)
    samples_per_image: str = Field("8", max_length=20)
    fixed_noise_std: str = Field("", max_length=20)
    debug_captions: bool = False
    ablation_compare: bool = False

    def request(self, dataset: str) -> dict[str, Any]:
        """What it asks for; a field that was left empty is left out."""
        texts = {key: value.strip() for key, value in self.model_dump(exclude={"arch"}).items()
                 if isinstance(value, str) and value.strip()}  # fmt: skip
        arch = {"model_config": {"arch": self.arch.strip()}} if self.arch.strip() else {}
        flags = {"debug_captions": self.debug_captions, "ablation_compare": self.ablation_compare}
        return {"dataset_path": dataset, **texts, **arch, **flags}


@router.post("/datasets/{name}/evaluate")
def evaluate_form(
    name: str, request: Request, services: Served, form: Annotated[EvalForm, Form()]
) -> Response:
    """Put an evaluation into the queue; what is wrong is told above the form, which keeps what was typed."""
    dataset = dataset_of(services, name)
    try:
        queueing.queue_evaluation(services, EvalIn.model_validate(form.request(dataset)))
    except ValidationError as error:
        wrong = [(str(each["loc"][0]) if each["loc"] else "", str(each["msg"])) for each in error.errors()]
    except ApiError as error:
        if error.status not in (409, 422):
            raise
        wrong = [(str(each.get("pointer", "")), str(each.get("detail", ""))) for each in error.errors]
        wrong = wrong or [("", error.detail)]
    else:
        return back_to(request, f"/datasets/{quote(dataset)}?done=queued#evaluations")
    return _form(request, services, dataset, form, wrong, 422)


def _form(
    request: Request, services: Services, name: str, values: EvalForm,
    wrong: list[tuple[str, str]], status: int,
) -> Response:  # fmt: skip
    output = services.preferences.output_root
    files = (path for path in output.glob("*/*.safetensors") if path.is_file())  # no links to what is gone
    loras = sorted(files, key=lambda path: -path.stat().st_mtime)[:MOST_LORAS]
    known = dict.fromkeys(each.model for each in queueing.list_evaluations(services) if each.model)
    context = {
        "name": name, "values": values, "wrong": wrong, "devices": services.settings.devices,
        "loras": [str(path) for path in loras],
        "models": ["tiny-sd", *(each for each in known if each != "tiny-sd")],
        "summary": library_of(services).summary(name),
    }  # fmt: skip
    return services.pages.page(request, "dataset_evaluate.html", context, status=status)
