"""`type: sd_trainer`: trains a network on a diffusion model, or the model itself, on captioned pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jobs import build
from jobs.diffusion_data import prepare_data
from jobs.session import Session
from jobs.trained_model import TrainedModel, load_trained_model, save_trained
from jobs.training_run import Outputs, TrainingRun, write_previews
from toolkit.config_modules.checks import check_objective
from toolkit.config_modules.loading import LoadedJob
from toolkit.config_modules.process import TrainProcess
from toolkit.config_modules.sample import SampleConfig
from toolkit.data.items import Batch
from toolkit.training.optimizers import check_optimizer


def run(loaded: LoadedJob, section: TrainProcess) -> None:
    """Train as the section says, in its run folder. Raises JobStopped if it was stopped early."""
    name = section.name or loaded.config.name
    with Session(
        loaded, root=build.training_root(section), name=name, total_steps=section.train.steps
    ) as session:
        # Everything the user can mend is said before any weights load.
        scan = build.scan_datasets(section, size_multiple=build.size_multiple(section.model))
        session.notes([*loaded.notes, *scan.notes])
        session.phase("loading", f"Loading model {section.model.name_or_path}")
        accelerator = build.accelerator(section)
        check_optimizer(section.train.optimizer, section.train.optimizer_params)
        trained = load_trained_model(section, accelerator)
        check_objective(trained.model.objective.name, section)
        session.say(trained.summary)
        session.stop.check()
        data = prepare_data(section, scan.items, trained, session)
        trainer = build.trainer(
            section, trained.groups, trained.parameters, accelerator, _losses(section, trained)
        )

        def save_model(path: Path, step: int) -> Path:
            epoch = data.epoch_of(trainer.state.position)
            with build.averaged(trainer.ema):
                return save_trained(
                    loaded, section, trained, path, step=step, epoch=epoch, num_images=scan.num_pictures
                )

        outputs = Outputs(
            save_model=save_model,
            preview=partial(_preview, section, trained, trainer, session)
            if _wants_previews(section)
            else None,
            prompts=[request.prompt for request in section.sample.requests(section.trigger_word)],
            **build.intervals(section),
        )
        training = TrainingRun(session, trainer, outputs, build.identity(section, data.order, trained.nature))
        session.finish(training.run(data.stream))


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


def _wants_previews(section: TrainProcess) -> bool:
    sets = [section.sample] if section.first_sample is None else [section.sample, section.first_sample]
    return not section.train.disable_sampling and any(each.samples or each.prompts for each in sets)


def _preview(section: TrainProcess, trained: TrainedModel, trainer: Any, session: Session, step: int) -> int:
    """Draw the preview pictures of a step, telling each one."""
    from toolkit.training.previews import preview_context, render

    sample: SampleConfig = section.sample
    if step == 0 and section.first_sample is not None:
        sample = section.first_sample
    requests = [build.with_seed(request) for request in sample.requests(section.trigger_word)]
    with preview_context(trained.model, ema=trainer.ema, autocast=trainer.accelerator.autocast):
        pictures = render(trained.model, requests, network=trained.network)
        told = session.each(pictures, "Generating images", total=len(requests))
        recipes = [build.recipe(request, section.model, step=step) for request in requests]
        return write_previews(session.folder, step, zip(told, recipes, strict=False), sample.format)
