"""Validation of a run: which pictures are held out, what they are measured with, and what is told of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from jobs.preflight_validation import ITEMS_FILE, held_out_dataset, listed_items, of_listed
from jobs.remedies import memory_remedies
from jobs.scanning import scan_datasets
from jobs.session import Session
from toolkit.config_modules.process import TrainProcess
from toolkit.config_modules.validation import ValidationConfig
from toolkit.data.items import MediaItem
from toolkit.data.latent_cache import LatentCache
from toolkit.data.prompt_cache import PromptCache
from toolkit.evaluation import split
from toolkit.evaluation.validation_record import (
    Reading,
    ValidationRecord,
    overfit_note,
)
from toolkit.paths import cache_root
from toolkit.runs import atomic
from toolkit.text import percent
from toolkit.training.out_of_memory import telling

if TYPE_CHECKING:
    from jobs.trained_model import TrainedModel
    from toolkit.evaluation.measure import Subject
    from toolkit.evaluation.validation import Grid
    from toolkit.prompt_utils import Conditioning
    from toolkit.training.trainer import Trainer


@dataclass(frozen=True)
class HeldOut:
    """The pictures of a run with validation: what is trained on, and what is measured.

    units, probe_units: equal numbers for pictures that look alike.
    """

    trained: list[MediaItem]
    held_out: list[MediaItem]
    probe: list[MediaItem]
    units: list[int]
    probe_units: list[int]
    num_withheld: int
    notes: list[str]


def hold_out(
    section: TrainProcess,
    items: list[MediaItem],
    session: Session,
    *,
    size_multiple: int,
    rescan: bool = False,
) -> HeldOut | None:
    """Part the pictures as the section says; None without validation. Raises DatasetError."""
    wanted = section.held_out
    if wanted is None:
        return None
    session.phase("caching", "Comparing pictures")
    notes: list[str] = []
    if wanted.fraction is not None:
        pictures = split.pictures_of(items, session.counted("pictures compared"))
        withheld = split.hold_out(pictures.values(), wanted.fraction, wanted.seed)
        trained = [item for item in items if item.path not in withheld]
        candidates = split.one_each(item for item in items if item.path in withheld)
    else:
        scan = scan_datasets(
            _of_held_out(section, wanted, session), size_multiple=size_multiple, rescan=rescan
        )
        notes += scan.notes
        pictures = split.pictures_of([*items, *scan.items], session.counted("pictures compared"))
        trained, withheld = items, set()
        candidates, told = split.unlike(split.one_each(scan.items), items, pictures)
        notes += told
    measured = split.drawn(candidates, wanted.num_images, wanted.seed, "validation-pictures")
    usual = [item for item in trained if not item.is_reg] or trained
    probe = split.drawn(split.one_each(usual), len(measured), wanted.seed, "validation-probe")
    found = HeldOut(
        trained, measured, probe,
        [pictures[item.path].group for item in measured], [pictures[item.path].group for item in probe],
        len(withheld), notes,
    )  # fmt: skip
    few = split.few_note(len(set(found.units)))
    notes += [few] if few else []
    return found


def _of_held_out(section: TrainProcess, wanted: ValidationConfig, session: Session) -> TrainProcess:
    """The section with the held-out folder as its only dataset, read as the first of its own is."""
    dataset = held_out_dataset(section, wanted)
    if wanted.items:
        path = session.folder.path / ITEMS_FILE
        atomic.write_text(path, listed_items(wanted))
        dataset = of_listed(dataset, path)
    return section.model_copy(update={"datasets": [dataset]})


class Validator:
    """Measures the model at its steps and keeps the record; training is left bit-equal."""

    def __init__(
        self, section: TrainProcess, held: HeldOut, trained: TrainedModel, session: Session
    ) -> None:  # fmt: skip
        from toolkit.evaluation.validation import Grid

        wanted = section.held_out
        assert wanted is not None
        self.every, self.total = wanted.every, section.train.steps
        self.batch_size = section.train.batch_size
        self._remedies = memory_remedies(section)
        self.held, self.trained, self.session = held, trained, session
        self.grid = Grid(wanted.num_levels, wanted.num_noises, tuple(wanted.noise_levels), wanted.seed)
        self._looked = False
        self._latents = _latents(section, held, trained, session)
        self._condition = _Conditions(section, held, trained, session)
        planned = 2 + (max(0, self.total - 1) // self.every if self.every else 0)
        self.record = ValidationRecord(
            _key(section, held, trained, self.grid), self.grid.labels,
            [str(item.path) for item in held.held_out], held.units, held.probe_units, planned,
        )  # fmt: skip
        rows = (len(held.held_out) + len(held.probe)) * self.grid.num_draws
        session.say(
            f"validation: {len(held.held_out)} held-out and {len(held.probe)} trained pictures at "
            f"{len(self.grid.designs)} noise levels, {rows} forward passes each time, {planned} times"
        )

    # -- what the run asks --------------------------------------------------------------------------

    def resume(self, step: int) -> None:
        """Go on from a step: readings of later ones will come again."""
        record, folder = self.record, self.session.folder
        if step > 0:
            reason = record.continued(folder.validation_path)
            if reason is not None:
                self.session.notes([f"validation begins anew at step {step}: {reason} since the last start"])
        before = record.best_saved
        record.forget_after(step)
        if before != record.best_saved and step > 0:
            folder.set_aside_best()
            name = record.saved.get(record.best_saved or -1)
            if name is not None and (folder.path / name).exists():
                folder.point_to_best(folder.path / name)

    def due(self, step: int) -> bool:
        """Whether a reading is to be made after this step and is not made yet."""
        if self.record.readings and step <= self.record.readings[-1].step:
            return False
        planned = step in (0, self.total) or (self.every > 0 and step % self.every == 0)
        return planned or not (self.record.readings or self._looked)

    def look(self, trainer: Trainer) -> bool:
        """Make a reading of the model as it would be saved now; False if a stop was asked for meanwhile."""
        from toolkit.evaluation.validation import measure_grid
        from toolkit.training.previews import preview_context

        started, model, autocast = time.perf_counter(), self.trained.model, trainer.accelerator.autocast
        tick = self._ticker()
        with (
            telling("validating", self._remedies),
            preview_context(model, averages=trainer.averages, autocast=autocast),
            self._condition.windows(),
        ):
            found = []
            for items in (self.held.held_out, self.held.probe):
                losses = measure_grid(
                    model, self._subjects(items), self.grid,
                    batch_size=self.batch_size, autocast=autocast, tick=tick,
                )  # fmt: skip
                if losses is None:
                    return False
                found.append(losses)
        self._looked = True
        if not all(numpy.isfinite(losses).all() for losses in found):
            self.session.notes([f"validation, step {trainer.state.step}: a loss is not finite; not recorded"])
            return True
        self.record.add(Reading(trainer.state.step, *found))
        self._tell(time.perf_counter() - started)
        return True

    def saved(self, step: int, path: Path) -> None:
        """Note that the model of a step was saved; the best one gets a second name."""
        if step not in self.record.steps:
            return
        self.record.saved[step] = path.name
        if self.record.best_saved == step:
            self.session.folder.point_to_best(path)
        self.record.write(self.session.folder.validation_path)

    def finish(self) -> None:
        """Say what was found, and draw it."""
        from toolkit.training.validation_plot import validation_plot

        record, session = self.record, self.session
        if not record.readings:
            return
        validation_plot(record, session.folder.validation_plot_path, title=session.folder.name)
        session.say(f"validation {session.folder.validation_plot_path}")
        saved = record.best_saved
        if saved is None:
            tail = "no model of a measured step was saved"
        else:
            best = session.folder.best_files()
            tail = f"of the saved models that of step {saved} is best" + (f": {best[-1]}" if best else "")
        if saved is not None and record.best is record.baseline and len(record.readings) > 1:
            tail += "; none is better on them than the model was at the start"
        session.say(f"validation: the held-out loss was lowest at step {record.best.step}; {tail}")

    # -- inside -------------------------------------------------------------------------------------

    def _ticker(self) -> Callable[[int], bool]:
        total = (len(self.held.held_out) + len(self.held.probe)) * self.grid.num_draws
        done = 0

        def tick(rows: int) -> bool:
            nonlocal done
            done += rows
            self.session.status.tick(info=f"Validating {done}/{total}")
            return self.session.stop_requested()

        return tick

    def _subjects(self, items: Sequence[MediaItem]) -> list[Subject]:
        from toolkit.evaluation.measure import Subject

        conditions = self._condition.of(items)
        return [
            Subject(item, self._latents[item.id], [conditioning])
            for item, conditioning in zip(items, conditions, strict=True)
        ]

    def _tell(self, seconds: float) -> None:
        record, session = self.record, self.session
        reading = record.readings[-1]
        summary = record.summary(reading)
        session.record(reading.step, **summary, val_seconds=round(seconds, 3))
        record.write(session.folder.validation_path)
        since = f" since step {record.baseline.step}"
        parts = []
        for name, key in (("held-out", "val"), ("trained", "probe")):
            change = summary.get(f"{key}_change")
            band = [summary.get(f"{key}_change_{end}", 0.0) for end in ("low", "high")]
            tail = (
                ""
                if change is None
                else f" ({percent(change)}{since}; 95 %: {percent(band[0])} to {percent(band[1])})"
            )
            parts.append(f"{name} pictures {summary[f'{key}_loss']:.4g}{tail}")
            since = ""
        session.say(f"validation, step {reading.step}: loss of {', of '.join(parts)}")
        overfit = record.overfit
        if overfit is not None and overfit.step == reading.step:
            session.say(f"warning: {overfit_note(overfit, len(record.units))}")


class _Conditions:
    """The conditioning of the measured captions: encoded once, or anew where what encodes them learns."""

    def __init__(self, section: TrainProcess, held: HeldOut, trained: TrainedModel, session: Session) -> None:
        from jobs.diffusion_data import cached_prompts

        self._model = trained.model
        before = self._model.num_windows
        texts = {item.caption: item for item in [*held.held_out, *held.probe]}
        self._prompts: PromptCache | None = cached_prompts(section, dict(texts), trained, session)
        self._num_windows = self._model.num_windows
        # The training's own captions decide how it is conditioned, whatever is held out.
        self._model.num_windows = before

    def of(self, items: Sequence[MediaItem]) -> list[Conditioning]:
        """The conditioning of each item's caption, a batch of one on the CPU."""
        from jobs.losses import conditioner

        condition = conditioner(self._model, self._prompts)
        return [condition([item.caption]).to("cpu") for item in items]

    @contextmanager
    def windows(self) -> Iterator[None]:
        """Inside, the model fills as many windows of tokens as the measured captions need."""
        before, self._model.num_windows = self._model.num_windows, self._num_windows
        try:
            yield
        finally:
            self._model.num_windows = before


def _latents(section: TrainProcess, held: HeldOut, trained: TrainedModel, session: Session) -> dict[str, Any]:
    """Latents (C, h, w) of every measured item by its id, encoded once."""
    session.phase("caching", "Preparing validation")
    on_disk = any(dataset.cache_latents_to_disk for dataset in section.datasets)
    folder = cache_root() / "latents" if on_disk else None
    cache = LatentCache(folder, trained.model.vae_hash, tell=session.note)
    items = [*held.held_out, *held.probe]
    with telling("preparing validation", memory_remedies(section)):
        cache.fill(
            items,
            lambda pixels: trained.model.encode_images(pixels.to(trained.device)),
            progress=session.counted("latents"),
            should_stop=session.stop_requested,
        )
    return {item.id: cache.get(item) for item in items}


def _key(section: TrainProcess, held: HeldOut, trained: TrainedModel, grid: Grid) -> dict[str, Any]:
    """What readings must share to be compared."""
    return {
        "pictures": [item.sha256 for item in held.held_out],
        "trained pictures": [item.sha256 for item in held.probe],
        "captions": [item.caption for item in [*held.held_out, *held.probe]],
        "grid": json.loads(json.dumps(asdict(grid))),
        "objective": trained.model.objective.name,
    }
