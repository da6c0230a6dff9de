"""What every training process does around the loop: metrics, saving, previews, commands, resuming."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.session import Session
from toolkit.data.items import Batch
from toolkit.errors import Problem, RunError, UserError
from toolkit.runs.images import save_image
from toolkit.runs.status import Phase
from toolkit.training import checkpoints
from toolkit.training.checkpoints import Checkpoint
from toolkit.training.progress import Progress
from toolkit.training.report import contact_sheet, loss_plot
from toolkit.training.trainer import StepReport, Trainer


@dataclass(frozen=True)
class Outputs:
    """What one kind of training writes, and how often (0: never). Steps are optimizer steps.

    save_model(path without extension) writes the trained model and returns where; preview(step) writes
    pictures and returns how many.
    """

    save_model: Callable[[Path, int], Path]
    preview: Callable[[int], int] | None = None
    prompts: list[str] = field(default_factory=list)
    save_every: int = 0
    sample_every: int = 0
    keep: int = 5
    log_every: int = 10
    sample_first: bool = True
    force_first_sample: bool = False


class TrainingRun:
    """Watches a trainer on behalf of a run folder, and brings a stopped run back where it was."""

    def __init__(
        self, session: Session, trainer: Trainer, outputs: Outputs, identity: dict[str, Any]
    ) -> None:
        self.session = session
        self.trainer = trainer
        self.outputs = outputs
        self.identity = identity
        self.pending: list[StepReport] = []
        self.bar: Progress | None = None
        self.saved_step: int | None = None
        self.started_at_step = 0

    # -- resuming -----------------------------------------------------------------------------------

    def resume(self) -> None:
        """Load the newest valid checkpoint, if there is one. Raises RunError if it holds other weights."""
        root = self.session.folder.checkpoints
        folder, damaged = checkpoints.newest_valid(root)
        for path in damaged:
            self.session.say(f"note: {path.name} is damaged and was passed over")
        if folder is None:
            return
        saved = checkpoints.load_checkpoint(folder)
        self._load_weights(saved, folder)
        trainer = self.trainer
        optimizer = checkpoints.unpack(saved.values["optimizer"], saved.tensors.get("optimizer", {}))
        trainer.updates.load_state_dict(optimizer)
        if trainer.updates.scaler is not None and saved.values["scaler"]:
            trainer.updates.scaler.load_state_dict(saved.values["scaler"])
        if trainer.ema is not None and "ema" in saved.tensors:
            trainer.ema.load(saved.tensors["ema"], saved.values["ema_updates"])
        trainer.state.step = saved.step
        trainer.state.position = saved.values["position"]
        trainer.state.skipped = saved.values["skipped"]
        self.saved_step = saved.step
        for key, value in self.identity.items():
            if saved.values["identity"].get(key) != value:
                self.session.say(
                    f"note: {key} differs from the checkpoint's: this run goes on with the new one"
                )
        self.session.say(f"note: resuming from step {saved.step} ({folder.name})")

    @torch.no_grad()
    def _load_weights(self, saved: Checkpoint, folder: Path) -> None:
        weights, parameters = saved.tensors["weights"], self.trainer.parameters
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        if {name: tuple(tensor.shape) for name, tensor in weights.items()} != shapes:
            problem = Problem(
                "run.foreign_checkpoint",
                f"holds {len(weights)} weights that do not fit the {len(shapes)} trained by this config",
                file=str(folder),
                remedy="use another name for this run, or move its checkpoints away to start anew",
            )
            raise RunError(problem)
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])

    # -- during the run -----------------------------------------------------------------------------

    def run(self, stream: Callable[[int], Generator[Batch, None, None]]) -> bool:
        """Resume, train to the end and write everything; False if it was stopped before the end.

        stream(position) yields batches from that micro-batch on.
        """
        self.resume()
        trainer, outputs, session = self.trainer, self.outputs, self.session
        self.started_at_step = trainer.state.step
        if trainer.state.step >= trainer.settings.steps:
            session.say(
                f"note: all {trainer.settings.steps} steps are done already; raise train.steps to go on"
            )
        elif outputs.force_first_sample or (outputs.sample_first and trainer.state.step == 0):
            self._preview()
        if session.stop_requested():
            return self._end(finished=False)
        session.phase("training", "Training")
        batches = stream(trainer.state.position)
        trainer.batches = batches
        try:
            with Progress(session.folder.name, trainer.settings.steps, start=trainer.state.step) as self.bar:
                finished = self._train()
                self._log()
        finally:
            batches.close()
            self.bar = None
        return self._end(finished)

    def _train(self) -> bool:
        """Run the loop. What ends it early, a vanished picture say, must not cost the steps done so far."""
        try:
            return self.trainer.run(self)
        except UserError:
            self._log()
            self._save_state()
            raise

    def after_step(self, report: StepReport) -> bool:
        """Log, save, preview and obey after a step; True ends training."""
        self.pending.append(report)
        step, outputs = report.step, self.outputs
        if self.bar is not None:
            self.bar.update(step)
        last = step == self.trainer.settings.steps
        if step % outputs.log_every == 0 or last or step == self.started_at_step + 1:
            self._log()
        commands = self.session.commands()
        self.session.status.tick(step)
        if "stop" in commands:
            return True
        if not last and (due(step, outputs.save_every) or "save" in commands):
            self._save(step)
        if not last and (due(step, outputs.sample_every) or "sample" in commands):
            self._preview()
        return False

    def _log(self) -> None:
        """Move the waiting numbers to the host in one transfer and write a row for each step."""
        if not self.pending:
            return
        reports, self.pending = self.pending, []
        numbers = torch.stack([torch.stack([r.loss.float(), r.grad_norm.float()]) for r in reports]).tolist()
        per_epoch = self.identity["batches_per_epoch"]
        for report, (loss, grad_norm) in zip(reports, numbers, strict=True):
            micro_batch = report.step * self.trainer.settings.accumulation - 1
            self.session.metrics.write(
                step=report.step,
                epoch=micro_batch // per_epoch,
                loss=round(loss, 7),
                lr=report.lr,
                grad_norm=round(grad_norm, 6),
                seconds=round(report.seconds, 4),
            )
        loss = sum(row[0] for row in numbers) / len(numbers)
        if self.bar is not None:
            self.bar.update(reports[-1].step, loss=loss, lr=reports[-1].lr)
        self.session.status.update(loss=loss, lr=reports[-1].lr)

    # -- saving -------------------------------------------------------------------------------------

    def _save(self, step: int) -> None:
        """The model under its step's name, and the full state to resume from."""
        folder = self.session.folder
        with self._interlude("saving", f"Saving step {step}"):
            self.outputs.save_model(folder.path / folder.step_name(step, ""), step)
            folder.prune_step_files(self.outputs.keep)
            self._save_state()

    def _save_state(self) -> None:
        trainer = self.trainer
        state = trainer.state
        if self.saved_step == state.step:
            return
        tensors, optimizer = checkpoints.pack_optimizer(trainer.updates.optimizer)
        groups: dict[str, dict[str, Tensor]] = {
            "weights": {name: parameter.detach() for name, parameter in trainer.parameters.items()},
            "optimizer": tensors,
        }
        if trainer.ema is not None:
            groups["ema"] = trainer.ema.shadow
        values = {
            "position": state.position,
            "skipped": state.skipped,
            "epoch": state.position // self.identity["batches_per_epoch"],
            "optimizer": optimizer,
            "scaler": trainer.updates.scaler.state_dict() if trainer.updates.scaler else None,
            "ema_updates": trainer.ema.num_updates if trainer.ema else 0,
            "identity": self.identity,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        checkpoints.save_checkpoint(self.session.folder.checkpoints, Checkpoint(state.step, groups, values))
        checkpoints.prune_checkpoints(self.session.folder.checkpoints, keep=2)
        self.saved_step = state.step

    def _preview(self) -> None:
        if self.outputs.preview is None:
            return
        with self._interlude("sampling", "Generating images"):
            self.outputs.preview(self.trainer.state.step)

    def _interlude(self, phase: Phase, info: str) -> AbstractContextManager[None]:
        return self.session.interlude(phase, info, bar=self.bar)

    def _end(self, finished: bool) -> bool:
        folder, step = self.session.folder, self.trainer.state.step
        self.session.phase("saving", "Saving")
        self._save_state()
        if finished:
            path = self.outputs.save_model(folder.path / folder.final_name(""), step)
            if self.outputs.preview is not None and step > self.started_at_step:
                self._preview()
            self.session.say(f"saved {path}")
        else:
            path = self.outputs.save_model(folder.path / folder.step_name(step, ""), step)
            folder.prune_step_files(self.outputs.keep)
            self.session.say(f"stopped after step {step}; the same command goes on from here. Saved {path}")
        self._write_pictures()
        return finished

    def _write_pictures(self) -> None:
        folder = self.session.folder
        rows = self.session.read_metrics()
        if rows:
            loss_plot(rows, folder.loss_plot_path, title=folder.name)
            self.session.say(f"loss curve {folder.loss_plot_path}")
        if folder.list_samples():
            contact_sheet(folder, folder.contact_sheet_path, prompts=self.outputs.prompts)
            self.session.say(f"samples {folder.contact_sheet_path}")


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after this one; 0 means never."""
    return every > 0 and step % every == 0


def write_previews(
    folder: Any, step: int, images: Iterable[tuple[Any, dict[str, Any]]], extension: str
) -> int:
    """Write pictures under the names of the run folder; returns their number."""
    count = 0
    for index, (image, recipe) in enumerate(images):
        name = folder.sample_name(int(time.time() * 1000), step, index, extension)
        save_image(image, folder.samples / name, recipe)
        count += 1
    return count
