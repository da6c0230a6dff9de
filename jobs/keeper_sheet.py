"""After training: every kept save of a network at several strengths, to choose the one to keep from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import build
from jobs.session import Session
from toolkit.config_modules.process import DiffusionProcess
from toolkit.config_modules.sample import SampleRequest
from toolkit.evaluation.validation_record import read_validation
from toolkit.networks.saving import load_network
from toolkit.runs import atomic
from toolkit.runs.images import save_image
from toolkit.runs.layout import RunFolder
from toolkit.training.out_of_memory import as_memory_allows
from toolkit.training.previews import preview_context, render
from toolkit.training.report import write_sheet

if TYPE_CHECKING:
    from PIL.Image import Image

    from jobs.trained_model import TrainedModel
    from toolkit.networks.adapters import AdapterNetwork
    from toolkit.training.trainer import Trainer


@dataclass(frozen=True)
class Save:
    """A saved network: its file, and what its column is called."""

    path: Path
    step: int
    title: str


def saves_of(run: RunFolder, last_step: int) -> list[Save]:
    """The saves of a run in order of steps, the finished model last; the best one says so."""
    files = [(step, path) for step, path in run.step_files() if step < last_step]
    finished = run.path / run.final_name()
    if finished.is_file():
        files.append((last_step, finished))
    record = read_validation(run.validation_path)
    best = record.best_saved if record is not None else None
    return [Save(path, step, f"step {step}{', best' if step == best else ''}") for step, path in files]


def draw_keeper_sheet(
    section: DiffusionProcess, trained: TrainedModel, trainer: Trainer, session: Session
) -> Path | None:
    """Draw the previews of `sample` with every save at every strength: a row for each prompt and strength.

    Returns the sheet, or None if there is nothing to draw or a stop was asked for. A picture that finds no
    memory is left out, and the network is left as it was. Raises RunError if the disk refuses, ModelError if
    a save cannot be read.
    """
    run, network = session.folder, trained.network
    assert network is not None  # checked with the config
    saves, strengths = saves_of(run, trainer.state.step), section.sample.keeper_strengths
    plain = section.sample.requests(section.trigger_word)
    requests = [build.drawable(request, section.model) for request in plain]
    rows = [(request, strength) for request in requests for strength in strengths]
    folder = run.keeper
    with atomic.reporting(folder):
        folder.mkdir(exist_ok=True)

    def draw(request: SampleRequest) -> Image:
        [image] = render(trained.model, [request], network=network)
        return image

    def pictures() -> Iterator[tuple[tuple[int, int], Path] | None]:
        for column, save in enumerate(saves):
            load_network(network, save.path)
            asked = [replace(request, network_multiplier=strength) for request, strength in rows]
            drawn = as_memory_allows(asked, draw, session.say)
            for row, (image, request) in enumerate(zip(drawn, asked, strict=True)):
                if image is None:
                    yield None
                    continue
                index, strength = divmod(row, len(strengths))
                path = folder / f"{save.step:09d}_{index}_{strengths[strength]:g}.png"
                save_image(image, path, build.recipe(request, section.model, step=save.step))
                yield (row, column), path

    total = len(rows) * len(saves)
    with _kept(network), preview_context(trained.model, autocast=trainer.accelerator.autocast):
        told = list(session.each(pictures(), "Drawing saves", total=total))
    cells = dict(cell for cell in told if cell is not None)
    if not cells or len(told) < total:
        return None
    labels = [f"{request.prompt}, strength {strength:g}" for request, strength in rows]
    return write_sheet(run.keeper_sheet_path, run.name, labels, [save.title for save in saves], cells)


@contextmanager
def _kept(network: AdapterNetwork) -> Iterator[None]:
    """Afterwards the network has its own weights again."""
    own = {name: parameter.detach().clone() for name, parameter in network.named_parameters().items()}
    try:
        yield
    finally:
        for name, parameter in network.named_parameters().items():
            parameter.data.copy_(own[name])
