"""Jobs as processes of this machine, each behind a shim in a session of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import psutil

from toolkit.paths import ROOT
from toolkit.runs.process import this_process
from web.launchers.attempt import MARK, AttemptFolder, Owners
from web.launchers.base import Evidence, LaunchSpec, Signal
from web.launchers.last_words import last_words

_CLAIM_S = 60.0  # how long a shim may take to begin, on a machine that is very busy


def command_line(command: Sequence[str], launcher: Mapping[str, object]) -> list[str]:
    """The command, under `accelerate launch` if the launcher's settings ask for processes.

    >>> command_line(["python", "run.py"], {"accelerate": 2})[1:]
    ['-m', 'accelerate.commands.launch', '--num_processes', '2', 'run.py']
    """
    processes = launcher.get("accelerate") or 0
    if not processes:
        return list(command)
    return [command[0], "-m", "accelerate.commands.launch", "--num_processes", f"{processes}", *command[1:]]


class LocalLauncher:
    """Starts jobs here. It remembers the shims it started only to notice at once that one could not begin."""

    def __init__(self) -> None:
        self._shims: dict[str, tuple[subprocess.Popen[bytes], float]] = {}

    def submit(self, spec: LaunchSpec) -> None:
        """Start a shim that starts the program. Raises OSError."""
        folder = spec.folder
        shim = [
            sys.executable,
            "-m",
            "web.launchers.shim",
            f"{folder.root}",
            folder.job_id,
            f"{folder.attempt}",
        ]
        environment = {**spec.environment, MARK: folder.mark}
        with folder.output_path.open("ab") as output:
            process = subprocess.Popen(
                [*shim, "--", *spec.argv], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=environment, cwd=ROOT, start_new_session=True, close_fds=True,
            )  # fmt: skip
        self._shims[folder.mark] = (process, time.monotonic())

    def unstarted(self, folder: AttemptFolder) -> str | None:
        """See Launcher."""
        known = self._shims.get(folder.mark)
        if known is None:
            return ""  # another server started it, or was about to
        process, since = known
        code = process.poll()
        if code is None:
            return None if time.monotonic() - since < _CLAIM_S else f"nothing began within {_CLAIM_S:g} s"
        said = last_words(folder.last_output()).line
        return f"the launcher ended with code {code}" + (f": {said}" if said else "")

    def revoke(self, folder: AttemptFolder) -> bool:
        """See Launcher."""
        folder.path.mkdir(parents=True, exist_ok=True)
        owners = folder.owners()
        return owners.revoked if owners is not None else folder.claim(Owners(revoked=True))

    def look(self, folder: AttemptFolder) -> Evidence:
        """See Launcher."""
        self._reap()
        ending = folder.exit()
        if ending is not None:
            return Evidence(claimed=True, started=True, exit=ending)
        owners = folder.owners()
        if owners is None:
            return Evidence()
        if owners.revoked or owners.shim is None:
            return Evidence(claimed=True, revoked=owners.revoked)
        alive = owners.shim.is_running()
        if alive is False and owners.child is not None:
            alive = owners.child.is_running()
        if alive is False:
            alive = any(True for _ in marked(folder.mark))
        # Whoever is dead now may have written how it ended since we looked.
        ending = folder.exit() if alive is False else None
        return Evidence(
            claimed=True, started=owners.child is not None, alive=alive, exit=ending,
            rebooted=owners.shim.boot_id != this_process().boot_id,
        )  # fmt: skip

    def signal(self, folder: AttemptFolder, name: Signal) -> None:
        """See Launcher."""
        owners = folder.owners()
        child = None if owners is None else owners.child
        if name == "kill":
            shim = None if owners is None or owners.shim is None else owners.shim.pid
            for process in _everything(folder.mark, None if child is None else child.pid):
                if process.pid != shim:
                    with suppress(psutil.Error):
                        process.kill()
            return
        if child is None or not child.is_running():
            return
        number = signal.SIGINT if name == "interrupt" else signal.SIGTERM
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(child.pid, number)
            else:
                os.kill(child.pid, number)

    def _reap(self) -> None:
        """Forget shims that have ended, so that none stays as a zombie."""
        for mark, (process, _since) in list(self._shims.items()):
            if process.poll() is not None and len(self._shims) > 64:
                del self._shims[mark]


def marked(mark: str) -> Iterator[psutil.Process]:
    """Every process of ours that carries the mark of an attempt, wherever it has moved to."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _everything(mark: str, child: int | None) -> list[psutil.Process]:
    """The processes of an attempt: the program, what descends from it, and what carries its mark."""
    found = {process.pid: process for process in marked(mark)}
    if child is not None:
        with suppress(psutil.Error):
            program = psutil.Process(child)
            found |= {process.pid: process for process in [program, *program.children(recursive=True)]}
    return list(found.values())
