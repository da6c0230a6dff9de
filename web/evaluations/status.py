"""The states of an evaluation in the words of ai-toolkit. Torch-free."""

from __future__ import annotations

from typing import Literal

from web.queue.states import State

EvalStatus = Literal["queued", "running", "finished", "error", "stopped"]
STATUS: dict[State, EvalStatus] = {
    "draft": "stopped", "queued": "queued",
    "starting": "queued", "running": "running", "stopping": "running",
    "completed": "finished", "stopped": "stopped", "failed": "error", "lost": "error",
}  # fmt: skip
