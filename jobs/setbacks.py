"""What a run does about a step that failed: pass over its batches, go back to a checkpoint, or give up."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.session import Session
from toolkit.training.left_out import LeftOut, LeftOutRecord
from toolkit.training.out_of_memory import MAX_IN_A_ROW, BatchOutOfMemory, no_memory
from toolkit.training.run_state import RunIdentity
from toolkit.training.trainer import StepReport, Trainer

MAX_TIMES_BACK = 3  # to one checkpoint: what fails again and again from there is no matter of the batches
_SHOWN = 8


@dataclass(frozen=True)
class Policies:
    """roll_back: on a loss that is not finite. remedies: what needs less memory, the cheapest first."""

    roll_back: bool = False
    remedies: tuple[str, ...] = ()


class Setbacks:
    """The record of what a run passes over, and the rules for adding to it."""

    def __init__(self, session: Session, trainer: Trainer, identity: RunIdentity, policies: Policies) -> None:
        self.session = session
        self.trainer = trainer
        self.policies = policies
        layout = f"{identity.items} batches of {identity.batch_size} seed {trainer.settings.seed}"
        self.record = LeftOutRecord(session.folder.checkpoints, layout)
        self._failing_step = self._before = -1
        self._in_a_row = 0

    def apply(self) -> None:
        """Have the trainer pass over what is on record, which a checkpoint's position may lie before."""
        self.trainer.left_out = self.record.positions
        while self.trainer.state.position in self.trainer.left_out:
            self.trainer.state.position += 1

    def tell(self) -> None:
        """Say what earlier attempts have put on record."""
        if self.record.entries:
            count, path = len(self.record.positions), self.record.path
            self.session.say(f"note: {count} batches are passed over that failed before, as {path} says")
        if self.record.damaged:
            told = "is damaged: what it said to pass over is trained on again"
            self.session.say(f"note: {self.record.path} {told}")

    def pass_over(self, error: BatchOutOfMemory) -> None:
        """Leave out batches that did not fit. Raises OutOfMemoryError if others in a row did not either."""
        for parameter in self.trainer.parameters.values():
            parameter.grad = None
        state, names = self.trainer.state, shown(error.files)
        if self._failing_step != error.step:
            self._failing_step, self._before, self._in_a_row = error.step, state.position, 0
        self._in_a_row += 1
        if self._in_a_row == MAX_IN_A_ROW:
            # With other settings they may fit, so none of them stays on record.
            self.record.drop(MAX_IN_A_ROW - 1)
            state.position, self.trainer.left_out = self._before, self.record.positions
            message = f"step {error.step}: not enough memory for {MAX_IN_A_ROW} batches in a row, the last of"
            raise no_memory(f"{message} {names}", self.policies.remedies)
        self.record.add(LeftOut("out_of_memory", error.step, error.first, error.stop, error.files))
        self.apply()
        self.session.say(f"note: step {error.step}: no memory for a batch, which is left out: {names}")

    def went_back(self, refused: StepReport) -> bool:
        """Leave out what came between the checkpoint that was just loaded and a refused step.

        A run that diverges does so by its weights and the batches of many steps together; begun again a while
        before with other batches it mostly does not (PaLM, arXiv:2204.02311, section 5.1). False if this
        checkpoint has been gone back to too often.
        """
        state = self.trainer.state
        if self.record.times_back_to(state.step) >= MAX_TIMES_BACK:
            return False
        first, files = state.position, list(refused.files)
        entry = LeftOut("non_finite", refused.step, first, refused.position, files, back_to=state.step)
        self.record.add(entry)
        self.apply()
        count = refused.position - first
        self.session.say(
            f"note: step {refused.step} was refused (not finite); back to step {state.step}, "
            f"leaving out the {count} batches since. Pictures of the refused step: {shown(files)}"
        )
        return True


def shown(files: list[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return ", ".join(files[:_SHOWN]) + more
