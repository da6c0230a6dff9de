"""Run a loaded job: every process it lists, one after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable

from toolkit.config_modules.loading import LoadedJob
from toolkit.quiet import hush_libraries
from toolkit.registry import Registry

# Type of a process in a config -> the function that runs it.
PROCESSES = Registry(
    "process type",
    {
        "sd_trainer": "jobs.process.sd_trainer:run",
        "diffusion_trainer": "jobs.process.sd_trainer:run",
        "ui_trainer": "jobs.process.sd_trainer:run",
        "textual_inversion_trainer": "jobs.process.sd_trainer:run",
        "concept_slider": "jobs.process.concept_slider:run",
        "slider": "jobs.process.slider:run",
        "vae": "jobs.process.vae:run",
        "to_folder": "jobs.process.to_folder:run",
        "eval_dataset": "jobs.process.eval_dataset:run",
        "caption_dataset": "jobs.process.caption_dataset:run",
    },
)


def run_job(loaded: LoadedJob) -> None:
    """Run every process of the job. Raises UserError for what its user can mend, JobStopped if stopped."""
    hush_libraries()
    for section in loaded.config.process:
        _import_process(section.type)(loaded, section)


def _import_process(name: str) -> Callable[[LoadedJob, object], None]:
    """The function that runs a type of process; keeps the garbage collector from what it imports.

    That is half a million objects, there for good: a full collection walks through them in a quarter of a
    second, several times while they are imported, in a start with many pictures and between steps.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        run: Callable[[LoadedJob, object], None] = PROCESSES.resolve(name)
        if not gc.get_freeze_count():  # once: what a finished job leaves is not there for good
            gc.freeze()
    finally:
        if collects:
            gc.enable()
    return run
