"""The training loop. It knows batches, losses and an optimizer; not which model or job it serves.

A step: micro-batches -> per-item losses x weights -> sum / N -> backward -> clip -> veto -> update -> EMA.
N counts the items of the whole optimizer step, so accumulation over batches of unequal size is exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from toolkit.data.items import Batch
from toolkit.diffusion.diffusion_loss import ItemLosses
from toolkit.seeding import seed_global
from toolkit.training.ema import Averages, ExponentialMovingAverage
from toolkit.training.lr_schedules import Schedule
from toolkit.training.out_of_memory import naming_batches, naming_update
from toolkit.training.rounding import RoundedWeights
from toolkit.training.schedule_free import schedule_free_average
from toolkit.training.updates import GuardedOptimizer, Verdict, non_finite_error

if TYPE_CHECKING:
    from accelerate import Accelerator

# Losses of a batch: whole, or made by a generator in parts that are added up. Each part is backpropagated
# before the next is made, so that only one graph is in memory, and whatever context the generator holds
# (a network's strength, say) is still in place when activations are recomputed in the backward pass.
Losses = Callable[[Batch], ItemLosses | Generator[ItemLosses, None, None]]

MAX_REFUSED_IN_A_ROW = 20  # where steps are skipped: after these nothing is learned any more


@dataclass(slots=True)
class TrainingState:
    """Where a run is: optimizer steps done, micro-batches and items consumed, updates refused (in a row)."""

    step: int = 0
    position: int = 0
    items: int = 0
    skipped: int = 0
    refused_in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step, its numbers still on the device. per_item (N,): unweighted losses in the order of files."""

    step: int
    position: int
    loss: Tensor
    per_item: Tensor
    t: Tensor | None
    grad_norm: Tensor
    lr: float
    seconds: float
    files: tuple[str, ...]
    finite: Verdict
    adapted_lr: float | Tensor | None = None  # what an optimizer that estimates its rate has found


class Watcher(Protocol):
    """Who is told about the run and may end it: writes metrics, saves, previews, obeys commands."""

    def after_step(self, report: StepReport) -> bool:
        """Called after every step; True ends training now."""


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """The plain numbers of a training run; `steps` and `lr` count optimizer steps."""

    steps: int
    accumulation: int = 1
    max_grad_norm: float | None = 1.0
    seed: int = 0
    skip_non_finite: bool = False


class Trainer:
    """Trains `parameters` on `batches` until `settings.steps` optimizer steps are done.

    losses maps a batch to its per-item losses, whole or in parts; batches yields micro-batches endlessly,
    already at `state.position`. left_out: positions of micro-batches that are passed over.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        *,
        losses: Losses,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        batches: Iterator[Batch],
        accelerator: Accelerator,
        ema: ExponentialMovingAverage | None = None,
        state: TrainingState | None = None,
        rounded: RoundedWeights | None = None,
    ) -> None:
        self.settings = settings
        self.losses = losses
        self.parameters = dict(parameters)
        self.updates = GuardedOptimizer(optimizer, accelerator.scaler, rounded)
        self.schedule = schedule
        self.batches = batches
        self.accelerator = accelerator
        self.ema = ema
        self.state = state or TrainingState()
        self.left_out: set[int] = set()
        self.forget()

    def forget(self) -> None:
        """Begin anew at `state`, which was just loaded: reports of steps before it count no more."""
        self.last: StepReport | None = None
        self.refused: StepReport | None = None
        self._judged = self.state.step

    @property
    def averages(self) -> Averages | None:
        """What the model is looked at with and saved as, where that is not the weights as they are."""
        return self.ema or schedule_free_average(self.updates.optimizer, list(self.parameters.values()))

    def run(self, watcher: Watcher) -> bool:
        """Train to the end; False if the watcher ended it before. May be called again after an error.

        Raises NonFiniteError for a refused step, and BatchOutOfMemory for a batch that does not fit.
        """
        while self.state.step < self.settings.steps:
            report = self.train_step()
            # The verdict of the step before has arrived while this one was queued.
            self.judge(self.last)
            self.last = report
            if watcher.after_step(report):
                self.judge(report)
                return False
        self.judge(self.last)
        return True

    def train_step(self) -> StepReport:
        """One optimizer step over `accumulation` micro-batches. Never waits for the device."""
        started = time.perf_counter()
        lr = self.updates.set_lr(self.schedule(self.state.step, self.settings.steps))
        micro_batches, position = self._take()
        num_items = sum(len(batch) for batch in micro_batches)
        with naming_batches(self.state.step + 1, self.state.position, position, micro_batches):
            loss, per_item = self._backward(micro_batches, num_items)
        with naming_update(self.state.step + 1):
            grad_norm = self._clip()
            finite = torch.isfinite(loss) & (torch.isfinite(grad_norm) | (self.updates.scaler is not None))
            self._update(finite)
            if self.ema is not None:
                self.ema.update(finite if self.settings.skip_non_finite else None)
        self.state.step += 1
        self.state.position = position
        self.state.items += num_items
        times = [batch.t for batch in micro_batches if batch.t is not None]
        return StepReport(
            step=self.state.step,
            position=position,
            loss=loss,
            per_item=per_item,
            t=torch.cat(times) if times else None,
            grad_norm=grad_norm,
            lr=lr,
            seconds=time.perf_counter() - started,
            files=tuple(str(item.path) for batch in micro_batches for item in batch.items),
            finite=Verdict(finite),
            adapted_lr=self.updates.adapted_rate(),
        )

    def _take(self) -> tuple[list[Batch], int]:
        """The micro-batches of a step, without those left out, and the position after them."""
        taken: list[Batch] = []
        position = self.state.position
        while len(taken) < self.settings.accumulation:
            batch = next(self.batches)
            if position not in self.left_out:
                taken.append(batch)
            position += 1
        return taken, position

    def _backward(self, micro_batches: list[Batch], num_items: int) -> tuple[Tensor, Tensor]:
        """Gradients of a whole step; its loss (), and the losses of its items (N,) without weights."""
        per_item, weighted = [], []
        for index, batch in enumerate(micro_batches):
            # For what draws from the global generators: nn.Dropout and third-party code.
            seed_global(self.settings.seed, self.state.step, index, self.accelerator.process_index)
            parts = []
            for losses in self._parts(batch):
                weights = batch.weights.to(losses.device, non_blocking=True)
                share = (losses * weights).sum() / num_items
                self.accelerator.backward(share)
                parts.append(losses.detach())
                weighted.append(share.detach())
            per_item.append(torch.stack(parts).sum(0))
        return torch.stack(weighted).sum(), torch.cat(per_item)

    def _update(self, finite: Tensor) -> None:
        """Apply the update where it is finite."""
        if self.updates.rounded is not None:
            # Rounding draws from the global generators; here they are the same on every rank.
            seed_global(self.settings.seed, self.state.step, self.settings.accumulation)
        self.updates.step(finite)

    def _parts(self, batch: Batch) -> Iterator[Tensor]:
        """The losses of a batch (B,), or one after the other the parts that they come in."""
        with self.accelerator.autocast():
            made = self.losses(batch)
        if isinstance(made, ItemLosses):
            yield made.per_item
            return
        with closing(made):
            while True:
                with self.accelerator.autocast():
                    part = next(made, None)
                if part is None:
                    return
                yield part.per_item

    def _clip(self) -> Tensor:
        """Clip the gradient to max_grad_norm; its norm before, a tensor ()."""
        if self.updates.scaler is not None:
            # fp16 gradients carry the scaler's factor, which the limit does not mean.
            self.updates.scaler.unscale_(self.updates.optimizer)
        limit = self.settings.max_grad_norm or float("inf")
        return nn.utils.clip_grad_norm_(list(self.parameters.values()), limit).detach()

    def judge(self, report: StepReport | None) -> None:
        """Read a step's verdict: raise NonFiniteError, or count the step if the settings say skip.

        Waits for the device if the step is still running; a second call for the same step does nothing.
        Called before anything is saved, so that a refused step is never behind a checkpoint unnoticed.
        """
        if report is None or report.step <= self._judged:
            return
        self._judged = report.step
        if report.finite.read():
            self.state.refused_in_a_row = 0
            return
        self.state.skipped += 1
        self.state.refused_in_a_row += 1
        if not self.settings.skip_non_finite or self.state.refused_in_a_row >= MAX_REFUSED_IN_A_ROW:
            self.refused = report
            raise non_finite_error(
                report.step, float(report.loss), float(report.grad_norm), list(report.files)
            )
