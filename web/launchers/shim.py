"""python -m web.launchers.shim ROOT JOB ATTEMPT -- COMMAND: run a command and write down how it ended.

It stands between the server and the program, so that the server can end and begin again at any moment:
whoever looks into the folder of the attempt learns who runs it and, afterwards, with which code it ended.
Torch-free, and light: it stays in memory as long as the program runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from toolkit.errors import RunError
from toolkit.runs.process import identity_of, this_process
from web.launchers.attempt import AttemptFolder, Exit, Owners

_PR_SET_CHILD_SUBREAPER = 36
_WRITE_TRIES = 120


def main(argv: Sequence[str]) -> int:
    """Run the command once, if nobody else has; 0 if it was run, whatever came of it."""
    split = list(argv).index("--")
    root, job_id, attempt = argv[:split]
    folder = AttemptFolder(Path(root), job_id, int(attempt))
    _stay()
    me = this_process()
    if not folder.claim(Owners(shim=me)):
        return 1  # the server has given this start up, or another shim was faster
    _write_exit(folder, _run(folder, list(argv[split + 1 :]), Owners(shim=me)))
    return 0


def _run(folder: AttemptFolder, command: list[str], owners: Owners) -> Exit:
    options: dict[str, object] = {} if os.name == "nt" else {"process_group": 0}
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    except OSError as error:
        return Exit(error=f"cannot start {command[0]}: {error.strerror}")
    folder.write_owners(Owners(shim=owners.shim, child=identity_of(child.pid)))
    code = child.wait()
    _end_the_rest(child.pid)
    return Exit(signal=-code) if code < 0 else Exit(code=code)


def _stay() -> None:
    """Outlive signals meant for the program, and become the parent of what it leaves behind."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            # A handler and not SIG_IGN, which the program would inherit.
            signal.signal(getattr(signal, name), lambda _number, _frame: None)
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_the_rest(group: int) -> None:
    """End what the program has started and left: it may hold memory that the next job needs."""
    import psutil

    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    with suppress(psutil.Error):
        left = psutil.Process().children(recursive=True)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=10)


def _write_exit(folder: AttemptFolder, ending: Exit) -> None:
    """Write exit.json; a full disk may have room again in a moment."""
    for _ in range(_WRITE_TRIES):
        try:
            folder.write_exit(ending)
            return
        except RunError as error:
            with suppress(OSError):
                sys.stderr.write(f"{error}\n")
            time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
