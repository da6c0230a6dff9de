"""`type: eval_dataset`: measures image by image whether captions help, into a run folder with a report."""

from __future__ import annotations

from jobs import build
from jobs.session import Session
from toolkit.config_modules.loading import LoadedJob
from toolkit.config_modules.process import EvalProcess


def run(loaded: LoadedJob, section: EvalProcess) -> None:
    """Measure, and write `name_{step}.json` and a page into the run folder. Raises JobStopped if stopped.

    The same job again goes on where it was stopped.
    """
    from toolkit.accelerator import pick_device
    from toolkit.evaluation.arguments import make_request
    from toolkit.evaluation.preparing import VERIFIED
    from toolkit.evaluation.service import run_evaluation
    from toolkit.evaluation.summary import summary_lines
    from toolkit.runs.watcher import Watcher

    name = section.name or loaded.config.name
    with Session(loaded, root=build.training_root(section), name=name) as session:
        session.notes(loaded.notes)
        device = pick_device(section.device)
        usual = "float32" if device.type == "cpu" else "bfloat16"
        dtype = section.dtype or section.model.dtype or usual
        model = section.model
        request = make_request(
            section.eval.model_dump()
            | {"model": model.name_or_path, "arch": model.arch, "device": str(device), "dtype": dtype}
            | {"out_dir": session.folder.path, "job_name": name}
        )

        verified = session.counted(VERIFIED)

        def progress(what: str, done: int, total: int) -> None:
            if what == VERIFIED:  # no step: nothing is measured yet
                verified(done, total)
                return
            session.status.update(total_steps=total)
            session.status.tick(done, info=f"{what} - {done}/{total}")

        session.phase("measuring", f"Measuring the captions of {', '.join(section.eval.dataset_path)}")
        report = run_evaluation(
            request,
            Watcher(say=session.say, progress=progress, should_stop=session.stop_requested),
            load=lambda: build.load_model(model, dtype=build.torch_dtype(dtype), device=device),
        )
        for line in summary_lines(report):
            session.say(line)
        session.say(f"report {request.report_path}")
