"""What every training of a diffusion model shares: a model loaded, a loop over a program, previews, files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import build
from jobs.diffusion_data import TrainingData
from jobs.keeper_sheet import draw_keeper_sheet
from jobs.nature import known_nature
from jobs.remedies import memory_remedies, policies
from jobs.session import Session
from jobs.trackers import tracking
from jobs.trained_model import TrainedModel, load_trained_model, save_trained
from jobs.training_run import Outputs, TrainingRun, write_previews
from toolkit.config_modules.checks import check_objective
from toolkit.config_modules.loading import LoadedJob
from toolkit.config_modules.process import DiffusionProcess
from toolkit.config_modules.sample import SampleRequest
from toolkit.data.coverage import count_showings
from toolkit.training.optimizers import check_optimizer
from toolkit.training.out_of_memory import as_memory_allows, telling

if TYPE_CHECKING:
    from accelerate import Accelerator

    from jobs.validation import Validator
    from toolkit.training.trainer import Losses, Trainer


@dataclass(frozen=True)
class Program:
    """What one kind of training teaches: its batches, the loss of a batch, and the previews of a step.

    labels name the previews in order. after_preview(step) is called when the pictures of a step are written.
    num_pictures is for the file's header.
    """

    data: TrainingData
    losses: Losses
    requests: Callable[[int], list[SampleRequest]]
    labels: list[str]
    num_pictures: int = 0
    after_preview: Callable[[int], None] | None = None
    validator: Validator | None = None


def open_session(loaded: LoadedJob, section: DiffusionProcess) -> Session:
    """The run folder of a process, to be entered."""
    name = section.name or loaded.config.name
    return Session(
        loaded,
        root=build.training_root(section),
        name=name,
        total_steps=section.train.steps,
        stems=build.file_stems(section, name),
        notify=section.notify,
        nature=known_nature(section),
    )


def load_for_training(section: DiffusionProcess, session: Session) -> tuple[TrainedModel, Accelerator]:
    """The model with what is trained on it. Raises UserError, or JobStopped if stopped meanwhile."""
    session.phase("loading", f"Loading model {section.model.name_or_path}")
    accelerator = build.accelerator(section)
    session.keep(tracking(section, session))
    check_optimizer(section.train.optimizer, section.train.optimizer_params, device=accelerator.device)
    with telling("loading the model", memory_remedies(section)):
        trained = load_trained_model(section, accelerator)
    check_objective(trained.model.objective.name, section)
    session.notes(trained.notes)
    session.say(trained.summary)
    session.stop.check()
    return trained, accelerator


def train(
    loaded: LoadedJob,
    section: DiffusionProcess,
    session: Session,
    trained: TrainedModel,
    accelerator: Accelerator,
    *,
    program: Program,
) -> None:
    """Run the loop over the program to its end. Raises JobStopped if it was stopped early."""
    trainer = build.trainer(
        section, trained.groups, trained.parameters, accelerator, program.losses, order=program.data.order
    )

    def save_model(path: Path, step: int) -> Path:
        epoch = program.data.epoch_of(trainer.state.position)
        with build.averaged(trainer.averages):
            return save_trained(
                loaded, section, trained, path, step=step, epoch=epoch, num_images=program.num_pictures
            )

    outputs = Outputs(
        save_model=save_model,
        preview=partial(_preview, section, trained, trainer, session, program)
        if _wants_previews(section)
        else None,
        coverage=partial(count_showings, program.data.items, program.data.order)
        if program.data.items
        else None,
        prompts=program.labels,
        validator=program.validator,
        keeper_sheet=partial(draw_keeper_sheet, section, trained, trainer, session)
        if section.sample.keeper_sheet
        else None,
        **build.intervals(section),
    )
    identity = build.identity(section, program.data.order, trained.nature)
    run = TrainingRun(session, trainer, outputs, identity, policies(section))
    session.finish(run.run(program.data.stream))


def plain_requests(section: DiffusionProcess, step: int) -> list[SampleRequest]:
    """The previews of a step as the sections `sample` and `first_sample` list them."""
    first = step == 0 and section.first_sample is not None
    sample = section.first_sample if first and section.first_sample is not None else section.sample
    return [build.drawable(request, section.model) for request in sample.requests(section.trigger_word)]


def _wants_previews(section: DiffusionProcess) -> bool:
    sets = [section.sample] if section.first_sample is None else [section.sample, section.first_sample]
    return not section.train.disable_sampling and any(each.samples or each.prompts for each in sets)


def _preview(
    section: DiffusionProcess,
    trained: TrainedModel,
    trainer: Trainer,
    session: Session,
    program: Program,
    step: int,
) -> int:
    """Draw the preview pictures of a step, telling each one."""
    from toolkit.training.previews import preview_context, render

    requests = program.requests(step)
    with preview_context(trained.model, averages=trainer.averages, autocast=trainer.accelerator.autocast):
        pictures = as_memory_allows(
            requests,
            lambda request: [*render(trained.model, [request], network=trained.network)][0],
            session.say,
        )
        told = session.each(pictures, "Generating images", total=len(requests))
        recipes = [build.recipe(request, section.model, step=step) for request in requests]
        count = write_previews(session.folder, step, zip(told, recipes, strict=False), section.sample.format)
    if program.after_preview is not None and count == len(requests):
        program.after_preview(step)
    return count
