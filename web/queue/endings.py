"""How an attempt ended, from what is left of it. Torch-free."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from toolkit.errors import EXIT_OK, EXIT_STOPPED
from toolkit.runs.status import Status
from web.launchers.attempt import Exit
from web.queue.states import State, StopMode

EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Ending:
    """The final state of an attempt, and why."""

    state: State
    reason: str
    code: int | None = None
    signal: int | None = None


def ending_of(
    exit: Exit | None, status: Status | None, mode: StopMode | None, *, said: str = "", rebooted: bool = False
) -> Ending:
    """The end of an attempt that runs no more.

    exit: what the shim wrote. status: what the run itself wrote last, if it was this attempt. mode: how it
    was asked to stop. said: its last line.
    """
    if exit is None and status is not None and status.exit is not None:
        # The shim is gone, but the run has told how it ended.
        code = status.exit.get("code")
        exit = Exit(code=code if isinstance(code, int) else None)
    if exit is None:
        return _vanished(mode, status, rebooted)
    if exit.error:
        return Ending("failed", exit.error)
    if exit.signal is not None:
        return _signalled(exit.signal, mode)
    if exit.code == EXIT_OK:
        return Ending("completed", "finished", exit.code)
    if exit.code == EXIT_STOPPED:
        return Ending("stopped", "stopped with a checkpoint", exit.code)
    if exit.code == EXIT_INTERRUPTED:
        return Ending("stopped", "interrupted before there was anything to save", exit.code)
    if mode is not None and status is None:
        # An interrupt while Python itself is starting ends it with code 1.
        return Ending("stopped", "stopped before it had begun", exit.code)
    if mode in ("now", "kill"):
        return Ending("stopped", f"ended with code {exit.code} while it was stopped", exit.code)
    errors = (status.exit or {}).get("error") if status is not None else None
    reason = str(errors[0]) if errors else said
    return Ending("failed", reason or f"ended with code {exit.code}", exit.code)


def _signalled(number: int, mode: StopMode | None) -> Ending:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if mode is not None:
        return Ending("stopped", f"ended by {name} on request", signal=number)
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return Ending("failed", f"ended by {name}{hint}", signal=number)


def _vanished(mode: StopMode | None, status: Status | None, rebooted: bool) -> Ending:
    at = f" at step {status.step}" if status is not None and status.step else ""
    if mode == "kill":
        return Ending("stopped", f"killed on request{at}")
    if rebooted:
        return Ending("lost", f"the machine was restarted while it ran{at}")
    return Ending("lost", f"it vanished{at}, and nothing is left to say how it ended")
