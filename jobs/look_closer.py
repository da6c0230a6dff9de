"""What `--check` adds to its report when asked for an estimate or a probe. torch is imported then."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

from toolkit.config_modules.loading import LoadedJob
from toolkit.config_modules.process import TrainProcess
from toolkit.errors import Problem, UserError
from toolkit.preflight.report import JobReport, ProcessReport
from toolkit.quiet import hush_libraries


def look_closer(job: LoadedJob, report: JobReport, *, probing: bool = False) -> None:
    """Add an estimate to each training of a job, by real steps if probing; what cannot be is a note.

    A model that cannot be loaded for those steps is a problem: the run would fail of it too.
    """
    for index, (process, found) in enumerate(zip(job.config.process, report.processes, strict=True)):
        if not isinstance(process, TrainProcess):
            found.notes.append(f"no estimate for type {process.type}: only for sd_trainer and its like")
        elif not found.items:
            found.notes.append("no estimate without pictures to train on")
        else:
            wrong = _estimate(process, found, probing)
            found.problems += [job.located(problem, index) for problem in wrong if probing]


def _estimate(section: TrainProcess, report: ProcessReport, probing: bool) -> list[Problem]:
    """Add the estimate or a note; what is wrong with the model's files."""
    wrong: list[Problem] = []
    hush_libraries()
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedOperatorException,
    )

    from jobs.estimate import estimate
    from toolkit.estimate.calibration import DEVICE_LOST

    try:
        with redirect_stdout(io.StringIO()):  # what libraries print would spoil --json
            report.estimate = estimate(section, report.items, probing=probing)
    except UserError as error:
        wrong = [problem for problem in error.problems if problem.code == "model.load"]
        report.notes += [f"no estimate: {problem}" for problem in error.problems]
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        report.notes.append(f"no estimate: the model computes what depends on values ({error.func})")
    except DEVICE_LOST as error:
        said = str(error).partition("\n")[0]
        report.notes.append(f"no estimate: the device failed while operations were timed ({said})")
    if report.estimate is not None:
        report.notes += report.estimate.notes
    return wrong
