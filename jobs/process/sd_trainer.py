"""`type: sd_trainer`: trains a network on a diffusion model, or the model itself, on captioned pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from jobs import build
from jobs.diffusion_data import prepare_data
from jobs.diffusion_run import Program, load_for_training, open_session, plain_requests, train
from jobs.trained_model import TrainedModel
from toolkit.config_modules.loading import LoadedJob
from toolkit.config_modules.process import TrainProcess
from toolkit.data.items import Batch


def run(loaded: LoadedJob, section: TrainProcess) -> None:
    """Train as the section says, in its run folder. Raises JobStopped if it was stopped early."""
    with open_session(loaded, section) as session:
        # Everything the user can mend is said before any weights load.
        scan = build.scan_datasets(section, size_multiple=build.size_multiple(section.model))
        session.notes([*loaded.notes, *scan.notes])
        trained, accelerator = load_for_training(section, session)
        program = Program(
            data=prepare_data(section, scan.items, trained, session),
            losses=_losses(section, trained),
            requests=partial(plain_requests, section),
            labels=[request.prompt for request in section.sample.requests(section.trigger_word)],
            num_pictures=scan.num_pictures,
        )
        train(loaded, section, session, trained, accelerator, program=program)


def _losses(section: TrainProcess, trained: TrainedModel) -> Callable[[Batch], Any]:
    """The per-item loss of a batch, as the section weighs it."""
    from toolkit.diffusion.criteria import CRITERIA
    from toolkit.diffusion.diffusion_loss import diffusion_loss
    from toolkit.diffusion.loss_weighting import min_snr

    criterion = CRITERIA[section.train.loss_type]
    gamma = section.train.min_snr_gamma
    weighting = min_snr(gamma) if gamma is not None else None
    model, device = trained.model, trained.device

    def losses(batch: Batch) -> Any:
        conditioning = batch.conditioning.to(device) if batch.conditioning is not None else None
        latents = batch.latents.to(device, non_blocking=True) if batch.latents is not None else None
        return diffusion_loss(
            model, batch, criterion=criterion, weighting=weighting, conditioning=conditioning, latents=latents
        )

    return losses
