"""How an attempt ended, from what is left of it. Torch-free."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace

from toolkit.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED
from toolkit.runs.status import Status
from web.launchers.attempt import Exit
from web.queue.states import State, StopMode


@dataclass(frozen=True, slots=True)
class Ending:
    """The final state of an attempt, and why."""

    state: State
    reason: str
    code: int | None = None
    signal: int | None = None


def ending_of(
    exit: Exit | None, status: Status | None, mode: StopMode | None, *,
    said: str = "", rebooted: bool = False, passed_on: Exit | None = None, saved: bool = False,
) -> Ending:  # fmt: skip
    """The end of an attempt that runs no more.

    exit: what the shim wrote. status: what the run itself wrote last, if it was this attempt. mode: how it
    was asked to stop. said: its last words. passed_on: what a launcher between shim and run says of its end.
    saved: whether there is a checkpoint.
    """
    exit = _of_the_run(exit, status, passed_on)
    if exit is None:
        return _vanished(mode, status, rebooted)
    if exit.error:
        return Ending("failed", exit.error)
    if exit.signal is not None:
        return _signalled(exit.signal, mode)
    if exit.code == EXIT_OK:
        return Ending("completed", "finished", exit.code)
    if exit.code == EXIT_STOPPED:
        return Ending("stopped", "stopped with a checkpoint" if saved else _without(status), exit.code)
    if exit.code == EXIT_INTERRUPTED:
        return Ending("stopped", _interrupted(mode, status), exit.code)
    if mode is not None and status is None:
        # An interrupt while Python itself is starting ends it with code 1.
        return Ending("stopped", "stopped before it had begun", exit.code)
    if mode in ("now", "kill"):
        return Ending("stopped", f"ended with code {exit.code} while it was stopped", exit.code)
    errors = (status.exit or {}).get("error") if status is not None else None
    reason = str(errors[0]) if errors else said
    return Ending("failed", reason or f"ended with code {exit.code}", exit.code)


def _without(status: Status | None) -> str:
    """How a run was stopped that leaves no checkpoint: in its own words, if it has any."""
    told = None if status is None or status.exit is None else status.exit.get("error")
    return str(told[0]) if told and str(told[0]).startswith("stopped ") else "stopped on request"


def _interrupted(mode: StopMode | None, status: Status | None) -> str:
    if mode in ("now", "kill"):
        return "stopped at once, without saving"
    if status is None:
        return "interrupted before there was anything to save"
    return "interrupted, without saving"


def _of_the_run(exit: Exit | None, status: Status | None, passed_on: Exit | None) -> Exit | None:
    """How the run itself ended: `accelerate launch` turns every code but 0, and every signal, into 1."""
    code = None if status is None or status.exit is None else status.exit.get("code")
    if exit is None:  # the shim is gone, but the run may have told how it ended
        return Exit(code=code) if isinstance(code, int) else None
    if exit.code != EXIT_FAILURE:
        return exit
    if passed_on is not None:
        return passed_on
    return replace(exit, code=code) if isinstance(code, int) and code != EXIT_OK else exit


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
