"""Run a loaded job: every process it lists, one after the other."""

from __future__ import annotations

import gc

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
    },
)


def run_job(loaded: LoadedJob) -> None:
    """Run every process of the job. Raises UserError for what its user can mend, JobStopped if stopped."""
    hush_libraries()
    for section in loaded.config.process:
        run = PROCESSES.resolve(section.type)
        # Half a million objects of the libraries, there for good: walking through them would cost every
        # full garbage collection a quarter of a second, in a start with many pictures and between steps.
        # Once, as what a finished job leaves is not there for good.
        if not gc.get_freeze_count():
            gc.freeze()
        run(loaded, section)
