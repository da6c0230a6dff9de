"""Chromium for the browser tests: found, or installed where that may be: python -m testing.e2e.chromium"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REMEDY = "install chromium with your system's packages, or set CHROMIUM=/path/to/a/Chromium"


def find() -> str | None:
    """The program that CHROMIUM names, else the first of NAMES on the PATH, else Playwright's own."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    return next(filter(None, map(shutil.which, NAMES)), None) or _of_playwright()


def _of_playwright() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        return shutil.which(started.chromium.executable_path)


def ways() -> list[list[list[str]]]:
    """What may install a Chromium here, first what is tried first: each a list of commands."""
    known: list[list[list[str]]] = []
    if shutil.which("apt-get"):
        if os.geteuid() == 0:
            known.append(_apt([]))
        elif shutil.which("sudo"):
            known.append(_apt(["sudo", "-n"]))  # never asks for a password
    known.append([[sys.executable, "-m", "playwright", "install", "chromium"]])
    return known


def _apt(prefix: Sequence[str]) -> list[list[str]]:
    apt = [*prefix, "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    return [
        [*apt, "update"],
        [*apt, "install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"],
    ]


def main() -> int:
    """Print where Chromium is, after installing it if need be; 1 with one line if there is no way."""
    found = find()
    if found is None and os.environ.get("CHROMIUM"):
        print(f"CHROMIUM names {os.environ['CHROMIUM']}, which is no program", file=sys.stderr)
        return 1
    for commands in ways() if found is None else []:
        print("installing Chromium:", " && ".join(" ".join(command) for command in commands), file=sys.stderr)
        if all(
            subprocess.run(command, stdout=sys.stderr, check=False).returncode == 0 for command in commands
        ):
            found = find()
        if found is not None:
            break
    if found is None:
        print(f"no Chromium, and it could not be installed here: {REMEDY}", file=sys.stderr)
        return 1
    print(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
