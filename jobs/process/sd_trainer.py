"""`type: sd_trainer`: trains a network on a diffusion model, or the model itself, on captioned pictures."""

from __future__ import annotations

from functools import partial

from jobs import build
from jobs.diffusion_data import prepare_data
from jobs.diffusion_run import Program, load_for_training, open_session, plain_requests, train
from jobs.losses import make_losses
from jobs.scanning import scan_datasets
from jobs.validation import Validator, hold_out
from toolkit.config_modules.loading import LoadedJob
from toolkit.config_modules.process import TrainProcess


def run(loaded: LoadedJob, section: TrainProcess) -> None:
    """Train as the section says, in its run folder. Raises JobStopped if it was stopped early."""
    with open_session(loaded, section) as session:
        # Everything the user can mend is said before any weights load.
        multiple = build.size_multiple(section.model)
        shown = session.counted("pictures")
        scan = scan_datasets(section, size_multiple=multiple, rescan=loaded.rescan, progress=shown)
        session.notes([*loaded.notes, *scan.notes])
        held = hold_out(section, scan.items, session, size_multiple=multiple, rescan=loaded.rescan)
        session.notes(held.notes if held else [])
        trained, accelerator = load_for_training(section, session)
        validator = Validator(section, held, trained, session) if held else None
        data = prepare_data(section, held.trained if held else scan.items, trained, session)
        program = Program(
            data=data,
            losses=make_losses(section, trained, data.prompts),
            requests=partial(plain_requests, section),
            labels=[request.prompt for request in section.sample.requests(section.trigger_word)],
            num_pictures=scan.num_pictures - (held.num_withheld if held else 0),
            validator=validator,
        )
        train(loaded, section, session, trained, accelerator, program=program)
