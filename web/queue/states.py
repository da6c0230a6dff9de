"""The states of a job, and which may follow which. Torch-free."""

from __future__ import annotations

from typing import Literal

State = Literal[
    "draft", "queued", "starting", "running", "stopping", "completed", "stopped", "failed", "lost"
]  # fmt: skip
StopMode = Literal["save", "now", "kill"]

# lost: it vanished without anyone being left to say how it ended.
STATES: tuple[State, ...] = (
    "draft", "queued", "starting", "running", "stopping", "completed", "stopped", "failed", "lost",
)  # fmt: skip
ACTIVE: frozenset[State] = frozenset({"starting", "running", "stopping"})  # holds its devices
_ENDED: tuple[State, ...] = ("completed", "stopped", "failed", "lost")
ENDED: frozenset[State] = frozenset(_ENDED)
EDITABLE: frozenset[State] = frozenset({"draft", *_ENDED})

FOLLOWERS: dict[State, frozenset[State]] = {
    "draft": frozenset({"queued"}),
    "queued": frozenset({"draft", "starting"}),
    # Back to queued: its process was never started, which is certain, so it waits again.
    "starting": frozenset({"queued", "running", "stopping", *_ENDED}),
    "running": frozenset({"stopping", *_ENDED}),
    # Back to queued: it was stopped in order to wait again.
    "stopping": frozenset({"queued", *_ENDED}),
    "completed": frozenset({"queued"}),
    "stopped": frozenset({"queued"}),
    "failed": frozenset({"queued"}),
    "lost": frozenset({"queued"}),
}
# Each way to stop is harder than the one before; a stop can only be made harder.
STOP_MODES: tuple[StopMode, ...] = ("save", "now", "kill")
