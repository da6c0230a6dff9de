"""`type: caption_dataset`: a model writes captions beside pictures; the run folder lists what it wrote."""

from __future__ import annotations

from jobs import build
from jobs.session import Session
from toolkit.config_modules.loading import LoadedJob
from toolkit.config_modules.process import CaptionProcess


def run(loaded: LoadedJob, section: CaptionProcess) -> None:
    """Caption the pictures. Raises JobStopped if stopped; the same job again goes on from there.

    Raises RunError at the end if there are pictures that could not be captioned.
    """
    from toolkit.captioning.request import CaptionRequest
    from toolkit.captioning.service import run_captioning
    from toolkit.runs.watcher import Watcher
    from toolkit.text import count

    name = section.name or loaded.config.name
    with Session(loaded, root=build.training_root(section), name=name) as session:
        session.notes(loaded.notes)
        settings = section.caption
        request = CaptionRequest(
            dataset_paths=settings.dataset_path,
            out_dir=session.folder.path,
            device=section.device,
            dtype=section.dtype,
            **settings.model_dump(exclude={"dataset_path"}),
        )
        shown = {what: session.counted(what) for what in ("verified", "captioned")}

        def progress(what: str, done: int, total: int) -> None:
            shown[what](done, total)
            if what == "captioned":
                session.status.update(total_steps=total)
                session.status.tick(done)

        session.phase("captioning", f"Captioning {', '.join(settings.dataset_path)} with {settings.model}")
        watcher = Watcher(say=session.say, progress=progress, should_stop=session.stop_requested)
        summary = run_captioning(request, watcher)
        session.say(
            f"{count(summary.num_captioned, 'picture')} captioned, {summary.num_kept} left as they were"
        )
