"""What can be wrong with a captioning before its model is loaded. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs.preflight_models import check_place
from toolkit.captioning.planning import make_plan
from toolkit.captioning.request import CaptionRequest
from toolkit.config_modules.process import CaptionProcess
from toolkit.errors import Problem, UserError
from toolkit.preflight.report import ProcessReport
from toolkit.text import count


def check_captioning(
    process: CaptionProcess,
    report: ProcessReport,
    found: list[Problem],
    running: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    """The model's place, and every picture that is to be captioned, decoded; problems are added to `found`.

    running: the job is about to start, and looks at the pictures itself.
    """
    check_place(process.caption.model, "caption.model", None, report, found, running)
    if running:
        return
    settings = process.caption.model_dump(exclude={"dataset_path"})
    request = CaptionRequest(process.caption.dataset_path, out_dir=Path(report.folder or "."), **settings)
    try:
        plan = make_plan(request, progress)
    except UserError as error:
        found += error.problems
    else:
        kept = f"{plan.num_kept} with a caption that stays"
        report.notes += [*plan.notes, f"{count(len(plan.todo), 'picture')} to caption, {kept}"]
