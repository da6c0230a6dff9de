"""What `--check` adds to its report when asked for an estimate or a probe. torch is imported then."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

from toolkit.config_modules.loading import LoadedJob
from toolkit.config_modules.process import TrainProcess
from toolkit.errors import UserError
from toolkit.preflight.report import JobReport, ProcessReport
from toolkit.quiet import hush_libraries


def look_closer(job: LoadedJob, report: JobReport, *, probing: bool = False) -> None:
    """Add an estimate to each training of a job, by real steps if probing; what cannot be is a note."""
    for process, found in zip(job.config.process, report.processes, strict=True):
        if not isinstance(process, TrainProcess):
            found.notes.append(f"no estimate for type {process.type}: only for sd_trainer and its like")
        elif not found.items:
            found.notes.append("no estimate without pictures to train on")
        else:
            _estimate(process, found, probing)


def _estimate(section: TrainProcess, report: ProcessReport, probing: bool) -> None:
    hush_libraries()
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedOperatorException,
    )

    from jobs.estimate import estimate

    try:
        with redirect_stdout(io.StringIO()):  # what libraries print would spoil --json
            report.estimate = estimate(section, report.items, probing=probing)
    except UserError as error:
        report.notes += [f"no estimate: {problem}" for problem in error.problems]
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        report.notes.append(f"no estimate: the model computes what depends on values ({error.func})")
    if report.estimate is not None:
        report.notes += report.estimate.notes
