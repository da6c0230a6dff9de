"""What every training process does around the loop: metrics, saving, previews, commands, resuming."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from jobs.session import Session
from jobs.setbacks import Policies, Setbacks
from jobs.validation import Validator
from toolkit.accelerator import peak_device_bytes
from toolkit.data.coverage import Coverage
from toolkit.data.items import Batch
from toolkit.errors import UserError
from toolkit.runs import atomic
from toolkit.runs.images import save_image
from toolkit.runs.layout import SCHEMA_VERSION
from toolkit.runs.levels import by_level
from toolkit.runs.status import Phase
from toolkit.training.checkpoint_writer import CheckpointWriter
from toolkit.training.out_of_memory import BatchOutOfMemory, UpdateOutOfMemory, free_memory, no_memory
from toolkit.training.progress import Progress, nothing_left
from toolkit.training.report import contact_sheet, loss_plot
from toolkit.training.run_report import write_run_report
from toolkit.training.run_state import NUM_KEPT, RunIdentity, load_state, snapshot
from toolkit.training.trainer import StepReport, Trainer
from toolkit.training.updates import NonFiniteError

Stream = Callable[[int], Generator[Batch, None, None]]


@dataclass(frozen=True)
class Outputs:
    """What one kind of training writes, and how often (0: never). Steps are optimizer steps.

    save_model(path without extension) writes the trained model and returns where; preview(step) writes
    pictures and returns how many; keeper_sheet() draws the saves to choose from at the end;
    coverage(position, left_out) counts how often each picture was shown.
    """

    save_model: Callable[[Path, int], Path]
    preview: Callable[[int], int] | None = None
    coverage: Callable[[int, set[int]], Coverage] | None = None
    prompts: list[str] = field(default_factory=list)
    validator: Validator | None = None
    keeper_sheet: Callable[[], Path | None] | None = None
    save_every: int = 0
    sample_every: int = 0
    keep: int = 5
    log_every: int = 10
    sample_first: bool = True
    force_first_sample: bool = False


class TrainingRun:
    """Watches a trainer on behalf of a run folder, and brings a stopped run back where it was."""

    def __init__(
        self,
        session: Session,
        trainer: Trainer,
        outputs: Outputs,
        identity: RunIdentity,
        policies: Policies | None = None,
    ) -> None:
        self.session = session
        self.trainer = trainer
        self.outputs = outputs
        self.identity = identity
        self.policies = policies or Policies()
        self.setbacks = Setbacks(session, trainer, identity, self.policies)
        self.writer = CheckpointWriter(session.folder.checkpoints, NUM_KEPT)
        self.pending: list[StepReport] = []
        self.bar: Progress | None = None
        self.started_at_step = 0
        self.stream: Stream | None = None

    @property
    def _total(self) -> int:
        """How many steps the run has at its end: those asked for, or those that were done already."""
        return max(self.trainer.settings.steps, self.trainer.state.step)

    def resume(self) -> None:
        """Go back to the newest valid checkpoint, if there is one. Raises RunError if it is another run's."""
        folder = self.session.folder
        self.writer.step, notes = load_state(folder.checkpoints, self.trainer, self.identity)
        self.session.notes(notes)
        self.session.status.update(step=self.trainer.state.step, total_steps=self._total)
        if self.outputs.validator is not None:
            self.outputs.validator.resume(self.trainer.state.step)
        for path in folder.set_aside(after_step=self.trainer.state.step):
            self.session.say(f"note: left by an earlier run, moved to {path.relative_to(folder.path)}")
        pictures = folder.set_aside_samples(after_step=self.trainer.state.step)
        if pictures:
            self.session.say(f"note: {pictures} previews of an earlier run moved to earlier/samples")
        if self.writer.step is not None:
            self.session.say(f"note: resuming from step {self.writer.step}")

    def run(self, stream: Stream) -> bool:
        """Resume, train to the end and write everything; False if it was stopped before the end.

        stream(position) yields batches from that micro-batch on.
        """
        self.resume()
        self.setbacks.tell()
        self.stream = stream
        with self.writer:
            return self._run()

    def _run(self) -> bool:
        trainer, outputs, session = self.trainer, self.outputs, self.session
        self.started_at_step = trainer.state.step
        if trainer.state.step >= trainer.settings.steps:
            session.note(nothing_left(trainer.state.step, trainer.settings.steps))
        elif outputs.force_first_sample or self._preview_is_missing():
            self._preview()
        if session.stop_requested():
            return self._end(finished=False)
        if not self._validate():
            return self._end(finished=False)
        session.phase("training", "Training")
        if self.policies.roll_back and self.writer.step is None:
            self._save_state()  # there must be something to go back to
        self._open()
        try:
            with Progress(session.folder.name, self._total, start=trainer.state.step) as self.bar:
                while (finished := self._train()) is None:
                    free_memory()
                self._log()
        finally:
            trainer.batches.close()  # type: ignore[attr-defined]
            self.bar = None
        try:
            return self._end(finished)
        except Exception as error:
            self._rescue(error)
            raise

    def _open(self) -> None:
        """Have batches come from where the trainer is."""
        assert self.stream is not None
        self.setbacks.apply()
        self.trainer.batches = self.stream(self.trainer.state.position)

    def _train(self) -> bool | None:
        """Run the loop; None if a step failed in a way that the run can go on after.

        What ends it early, a vanished picture say, must not cost the steps done so far.
        """
        try:
            try:
                return self.trainer.run(self)
            except BatchOutOfMemory as error:
                self.setbacks.pass_over(error)
            except NonFiniteError:
                # Its batch must come again on a resume, so the last save is what the run goes back to.
                self._log()
                if not self._roll_back():
                    raise
        except NonFiniteError:
            raise
        except UpdateOutOfMemory as error:
            raise no_memory(str(error), self.policies.remedies) from None  # and nothing half updated is saved
        except Exception as error:
            self._rescue(error)
            raise
        return None

    def _roll_back(self) -> bool:
        """Go back to the newest checkpoint after a refused step, if the settings ask for it and it helps."""
        refused = self.trainer.refused
        if not self.policies.roll_back or refused is None:
            return False
        self.writer.wait()
        self.session.new_attempt()
        self.resume()
        if self.writer.step is None or not self.setbacks.went_back(refused):
            return False
        self.trainer.batches.close()  # type: ignore[attr-defined]
        self._open()
        return True

    def _rescue(self, error: Exception) -> None:
        """Save what can be saved before an error ends the run; a second error becomes a note of the first."""
        try:
            self._log()
            self._save_state()
            self.writer.wait()
        except (OSError, UserError) as failure:
            error.add_note(f"the steps since the last save could not be saved: {failure}")
        else:
            error.add_note(f"the state after step {self.trainer.state.step} was saved")

    def after_step(self, report: StepReport) -> bool:
        """Log, save, preview and obey after a step; True ends training."""
        self.pending.append(report)
        self.writer.check()
        step, outputs = report.step, self.outputs
        if self.bar is not None:
            self.bar.update(step)
        last = step == self.trainer.settings.steps
        if step % outputs.log_every == 0 or last or step == self.started_at_step + 1:
            self._log()
        commands = self.session.commands()
        self.session.status.tick(step)
        if last:  # the end saves and previews, whatever was asked for
            return False
        if "stop" in commands or not self._validate():
            return True
        if due(step, outputs.save_every) or "save" in commands:
            self._save(step)
        if due(step, outputs.sample_every) or "sample" in commands:
            self._preview()
        return False

    def _log(self) -> None:
        """Move the waiting numbers to the host and write rows, the last with losses by level."""
        if not self.pending:
            return
        reports, self.pending = self.pending, []
        numbers = torch.stack([torch.stack([r.loss.float(), r.grad_norm.float()]) for r in reports]).tolist()
        per_epoch = self.identity.batches_per_epoch
        peak = peak_device_bytes(next(iter(self.trainer.parameters.values())).device)
        for report, (loss, grad_norm) in zip(reports, numbers, strict=True):
            adapted = {} if report.adapted_lr is None else {"adapted_lr": float(report.adapted_lr)}
            of_all = {}
            if report is reports[-1]:
                of_all = losses_by_level(reports) | ({} if peak is None else {"peak_device_bytes": peak})
            self.session.record(
                report.step,
                epoch=(report.position - 1) // per_epoch,
                loss=round(loss, 7),
                lr=report.lr,
                grad_norm=round(grad_norm, 6),
                seconds=round(report.seconds, 4),
                **adapted,
                **of_all,
            )
        loss = sum(row[0] for row in numbers) / len(numbers)
        newest = reports[-1]
        rate = newest.lr if newest.adapted_lr is None else float(newest.adapted_lr)
        if self.bar is not None:
            self.bar.update(newest.step, loss=loss, lr=rate)
        self.session.status.update(loss=loss, lr=rate)

    # -- saving -------------------------------------------------------------------------------------

    def _save(self, step: int) -> None:
        """The model under its step's name, and the full state to resume from.

        In this order, so that a run killed between the two makes both again.
        """
        with self._interlude("saving", f"Saving step {step}"):
            self.trainer.judge(self.trainer.last)
            self._save_model(step)
            self._save_state()

    def _save_model(self, step: int) -> Path:
        folder = self.session.folder
        path = self.outputs.save_model(folder.path / folder.step_name(step, ""), step)
        self._saved(step, path)
        folder.prune_step_files(self.outputs.keep, current=step)
        return path

    def _saved(self, step: int, path: Path) -> None:
        if self.outputs.validator is not None:
            self.outputs.validator.saved(step, path)

    def _validate(self) -> bool:
        """Measure the held-out loss if it is due; False if a stop was asked for meanwhile."""
        validator = self.outputs.validator
        if validator is None or not validator.due(self.trainer.state.step):
            return True
        self._log()  # rows of steps in their order
        with self._interlude("training", "Validating"):
            return validator.look(self.trainer)

    def _save_state(self) -> None:
        """Copy the state and have it written while the loop goes on. Raises RunError of the write before."""
        if self.writer.step == self.trainer.state.step:
            return
        self.trainer.judge(self.trainer.last)
        self._log()  # what a run resumed from here does not do again
        self.session.metrics.flush()
        self.writer.submit(snapshot(self.trainer, self.identity))

    def _preview_is_missing(self) -> bool:
        """Whether the step to go on from has previews due that no attempt has drawn to the end."""
        step, outputs = self.trainer.state.step, self.outputs
        if step == 0:
            return outputs.sample_first
        drawn = self.session.folder.samples_by_step().get(step, {})
        return due(step, outputs.sample_every) and len(drawn) < len(outputs.prompts)

    def _preview(self) -> None:
        if self.outputs.preview is None:
            return
        with self._interlude("sampling", "Generating images"):
            self.outputs.preview(self.trainer.state.step)

    def _interlude(self, phase: Phase, info: str) -> AbstractContextManager[None]:
        return self.session.interlude(phase, info, bar=self.bar)

    def _end(self, finished: bool) -> bool:
        folder, step = self.session.folder, self.trainer.state.step
        if finished:
            self._validate()
        self.session.phase("saving", "Saving")
        self._save_state()
        if finished:
            path = self.outputs.save_model(folder.path / folder.final_name(""), step)
            self._saved(step, path)
            if self.outputs.preview is not None and step > self.started_at_step:
                self._preview()
            self.writer.wait()
            self.session.say(f"saved {path}")
        else:
            path = self._save_model(step)
            self.writer.wait()
            self.session.say(f"stopped after step {step}; the same command goes on from here. Saved {path}")
        if self.trainer.state.skipped:
            self.session.say(
                f"note: {self.trainer.state.skipped} of {step} updates were refused: loss or gradient was "
                "not finite (null in metrics.jsonl)"
            )
        self._write_pictures()
        if self.outputs.validator is not None:
            self.outputs.validator.finish()
        self._write_coverage()
        if finished and self.outputs.keeper_sheet is not None:
            with self._interlude("sampling", "Drawing the saves to choose from"):
                sheet = self.outputs.keeper_sheet()
            if sheet is not None:
                self.session.say(f"saves to choose from {sheet}")
        self._write_report()
        return finished

    def _write_coverage(self) -> None:
        if self.outputs.coverage is None:
            return
        state, path = self.trainer.state, self.session.folder.coverage_path
        coverage = self.outputs.coverage(state.position, self.trainer.left_out)
        # Where pictures or batches changed between two attempts, the position alone no longer tells.
        exact = coverage.num_showings == state.items
        head = {"schema_version": SCHEMA_VERSION, "step": state.step, "exact": exact}
        atomic.write_text(path, json.dumps(head | coverage.as_json(), indent=1, ensure_ascii=False))
        doubt = "" if exact else " (counted as if pictures and batch size had always been as they are now)"
        self.session.say(f"coverage {path}: {coverage.summary}{doubt}")

    def _write_report(self) -> None:
        folder = self.session.folder
        self.session.metrics.flush()
        self.session.say(f"report {write_run_report(folder, self.outputs.prompts)}")

    def _write_pictures(self) -> None:
        folder = self.session.folder
        rows = self.session.read_metrics()
        if rows:
            loss_plot(rows, folder.loss_plot_path, title=folder.name)
            self.session.say(f"loss curve {folder.loss_plot_path}")
        if folder.list_samples():
            contact_sheet(folder, folder.contact_sheet_path, prompts=self.outputs.prompts)
            self.session.say(f"samples {folder.contact_sheet_path}")


def losses_by_level(reports: Sequence[StepReport]) -> dict[str, Any]:
    """The losses of these steps' items by noise level, for a row; nothing where items have none."""
    told = [(report.t, report.per_item) for report in reports if report.t is not None]
    if not told:
        return {}
    levels, losses = (torch.cat(values).tolist() for values in zip(*told, strict=True))
    return by_level(levels, losses)


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after this one; 0 means never."""
    return every > 0 and step % every == 0


def write_previews(
    folder: Any, step: int, images: Iterable[tuple[Any, dict[str, Any]]], extension: str
) -> int:
    """Write pictures under the names of the run folder, those that there are; returns their number."""
    count = 0
    for index, (image, recipe) in enumerate(images):
        if image is None:
            continue
        name = folder.sample_name(int(time.time() * 1000), step, index, extension)
        save_image(image, folder.samples / name, recipe)
        count += 1
    return count
