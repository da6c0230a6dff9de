"""run.py --check on a text, as a process of its own: what it prints is what the terminal would show."""

from __future__ import annotations

import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from toolkit.paths import ROOT
from web.environment import job_environment
from web.problems import ApiError
from web.settings import WebSettings

TIMEOUT_S = 120.0
_AT_ONCE = threading.BoundedSemaphore(2)


@dataclass(frozen=True, slots=True)
class Checked:
    """What the check printed, and whether it found nothing wrong."""

    ok: bool
    lines: list[str]


def check_text(settings: WebSettings, text: str, devices: tuple[str, ...]) -> Checked:
    """Check a config as run.py would before it runs it. Raises 429 while two others are being checked."""
    if not _AT_ONCE.acquire(blocking=False):
        raise ApiError(429, "web.busy", "two other configs are being checked; try again in a moment",
                       headers={"Retry-After": "5"})  # fmt: skip
    try:
        with tempfile.TemporaryDirectory(prefix="aitk-check-") as folder:
            path = Path(folder) / "config.yaml"
            path.write_text(text, encoding="utf-8")
            return _run([*settings.command, "--check", str(path)], devices, str(path))
    finally:
        _AT_ONCE.release()


def _run(command: list[str], devices: tuple[str, ...], path: str) -> Checked:
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=job_environment(devices), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Checked(False, [f"the check took longer than {TIMEOUT_S:g} s and was ended"])
    except OSError as error:
        return Checked(False, [f"run.py could not be started: {error}"])
    return Checked(done.returncode == 0, done.stdout.replace(path, "config").splitlines()[-500:])
