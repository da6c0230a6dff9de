"""How a run stands, said by its folder: running, ended, or killed without having said so. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import Problem, RunError
from toolkit.runs import atomic
from toolkit.runs.commands import COMMANDS, CommandBox
from toolkit.runs.layout import SCHEMA_VERSION
from toolkit.runs.lock import holder_runs
from toolkit.runs.remedies import memory_remedies
from toolkit.runs.status import FINAL_PHASES, Status, read_status

State = Literal["running", "finished", "stopped", "failed", "killed", "silent", "unknown"]
# The run counts `alive` every two seconds; network file systems show it to others a few seconds late.
LISTEN_S = 6.0
EXIT_KILLED = 137  # what shells call the end by SIGKILL


@dataclass(frozen=True, slots=True)
class Standing:
    """A run at the moment of asking. silent: on another machine, and nothing moved while we listened."""

    folder: Path
    state: State
    status: Status | None

    def as_json(self) -> dict[str, Any]:
        """The same as plain data for other programs."""
        status = None if self.status is None else asdict(self.status)
        told: dict[str, Any] = {
            "name": self.folder.name,
            "folder": str(self.folder),
            "state": self.state,
            "status": status,
        }
        if self.state == "killed":
            told |= {"exit_code": EXIT_KILLED, "remedies": _remedies(self)}
        return {"schema_version": SCHEMA_VERSION, **told}


def look(folder: Path, *, listen_s: float = LISTEN_S) -> Standing:
    """How the run in `folder` stands.

    A process of this machine is asked for by its boot and start time; of another it is heard whether `alive`
    counts on, for at most `listen_s` seconds. Raises RunError if a newer program wrote its status.
    """
    status = read_status(folder / "status.json")
    if status is None:
        return Standing(folder, "unknown", None)
    if status.phase in FINAL_PHASES:
        return Standing(folder, status.phase, status)  # type: ignore[arg-type]
    running = status.process.is_running()
    if running is None and holder_runs(folder / "run.lock") is False:
        running = False
    if running is None:
        return _listen(folder, status, listen_s)
    if running:
        return Standing(folder, "running", status)
    last = read_status(folder / "status.json") or status  # it may have ended well between the two questions
    ended = last.phase in FINAL_PHASES
    return Standing(folder, last.phase if ended else "killed", last)  # type: ignore[arg-type]


def _listen(folder: Path, status: Status, listen_s: float) -> Standing:
    """Wait until the run counts on, or long enough to say that it does not."""
    deadline = time.monotonic() + listen_s
    while time.monotonic() < deadline:
        time.sleep(min(0.25, listen_s))
        now = read_status(folder / "status.json") or status
        if now.phase in FINAL_PHASES:
            return Standing(folder, now.phase, now)  # type: ignore[arg-type]
        if (now.alive, now.progress) != (status.alive, status.progress):
            return Standing(folder, "running", now)
    return Standing(folder, "silent", status)


def killed_before(folder: Path) -> str | None:
    """What to tell a run that starts where another was killed, or None. Call it while holding the lock."""
    status = read_status(folder / "status.json")
    if status is None or status.phase in FINAL_PHASES:
        return None
    standing = Standing(folder, "killed", status)
    return f"attempt {status.attempt} {_death(standing)}; {_advice(standing)}"


def command(folder: Path, name: str, *, listen_s: float = LISTEN_S) -> str:
    """Put a command into a run's folder; one line on what happens now.

    Raises RunError if nothing runs there that could obey it, ValueError for an unknown command.
    """
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}")
    standing = look(folder, listen_s=listen_s)
    status = standing.status
    if status is None or standing.state not in ("running", "silent"):
        how = "has no readable status" if status is None else headline(standing).partition(": ")[2]
        message = f"cannot obey '{name}': nothing runs there ({how})"
        raise RunError(Problem("run.not_running", message, file=str(folder)))
    with atomic.reporting(folder / "commands" / name):
        CommandBox(folder / "commands").put(name)
    effect = {
        "stop": "it ends after the current step, with a checkpoint",
        "abort": "it ends, without saving",
        "save": "it saves after the current step, and goes on",
        "sample": "it draws its previews after the current step, and goes on",
    }[name]
    silent = " (nothing heard from it so far)" if standing.state == "silent" else ""
    return f"{folder.name}: told to {name} at {_where(status)}: {effect}{silent}"


def headline(standing: Standing) -> str:
    """One line: the run's name and how it stands."""
    status, name = standing.status, standing.folder.name
    if status is None:
        return f"{name}: no readable status.json; the run has not started, or its folder is damaged"
    if standing.state == "running":
        return f"{name}: running: {_now(status)}"
    if standing.state == "silent":
        process = f"process {status.pid} on {status.host}"
        return f"{name}: nothing heard from {process}, last {_now(status)}; look there whether it still runs"
    if standing.state == "killed":
        return f"{name}: {_death(standing)}"
    if standing.state == "finished":
        return f"{name}: finished, {_steps(status)}"
    reason = f": {status.info}" if status.info else ""
    return f"{name}: {standing.state} after {_where(status)}{reason}"


def describe(standing: Standing) -> list[str]:
    """The headline and what else is worth knowing, a line each."""
    status, lines = standing.status, [headline(standing)]
    if status is None:
        return [*lines, f"  folder {standing.folder}"]
    if standing.state == "killed":
        lines.append(f"  {_advice(standing)}")
    if standing.state == "failed" and status.exit is not None:
        lines += [f"  {line}" for line in status.exit.get("error", [])[1:]]
    if status.loss is not None:
        rate = "" if status.lr is None else f", learning rate {status.lr:.3g}"
        lines.append(f"  loss {status.loss:.4g}{rate}")
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.started_at))
    lines.append(f"  attempt {status.attempt}, process {status.pid} on {status.host}, started {started}")
    return [*lines, f"  folder {standing.folder}"]


def table(standings: list[Standing]) -> list[str]:
    """A line for each run: name, state, step, what it does."""
    rows = [
        (
            each.folder.name,
            each.state,
            _steps(each.status),
            "" if each.status is None else _doing(each.status),
        )
        for each in standings
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
    return [
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]
        ).rstrip()
        for row in rows
    ]


def _doing(status: Status) -> str:
    return status.info or status.phase


def _now(status: Status) -> str:
    """Phase, step, speed and time left of a run that lives."""
    parts = [status.phase if status.phase == "training" or not status.info else _phrase(status)]
    parts.append(_steps(status))
    if status.speed:
        fast = status.speed >= 1
        parts.append(f"{status.speed:.2f} steps/s" if fast else f"{1 / status.speed:.2f} s/step")
    if status.eta_s is not None and status.phase not in FINAL_PHASES:
        parts.append(f"about {duration(status.eta_s)} left")
    return ", ".join(parts)


def _phrase(status: Status) -> str:
    return status.phase if status.info.lower() == status.phase else f"{status.phase} ({status.info})"


def _steps(status: Status | None) -> str:
    if status is None:
        return ""
    if not status.total_steps:
        return f"step {status.step}"
    return f"step {status.step} of {status.total_steps} ({100 * status.step // status.total_steps} %)"


def _where(status: Status) -> str:
    return f"step {status.step}" if status.step or status.phase != "loading" else "loading"


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _death(standing: Standing) -> str:
    status = standing.status
    assert status is not None
    return (
        f"was killed at step {status.step} while {status.phase}, without a chance to say why: "
        f"probably the system ran out of memory (exit code {EXIT_KILLED}), else by hand or a power cut"
    )


def _advice(standing: Standing) -> str:
    return "if it was memory, cheapest first: " + "; ".join(_remedies(standing))


def _remedies(standing: Standing) -> list[str]:
    status = standing.status
    phase = "training" if status is None else status.phase
    return memory_remedies(_process(standing.folder), phase)


def _process(folder: Path) -> Mapping[str, Any]:
    """The process of a run as its config.yaml has it; {} if that cannot be read."""
    import yaml

    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        processes = config["config"]["process"]
        named = [each for each in processes if each.get("name") == folder.name]
        return dict((named or processes)[0])
    except (OSError, yaml.YAMLError, KeyError, TypeError, IndexError, AttributeError, ValueError):
        return {}
