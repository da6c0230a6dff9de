"""The folder of one attempt at a job: what was run, who runs it, what it printed, how it ended. Torch-free.

config.yaml  output.txt  proc.json (who runs it; made once, by whoever is first)  exit.json (how it ended)
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.runs import atomic
from toolkit.runs.process import ProcessIdentity

# Every process of an attempt carries this variable, so that it can be found again: "<job>.<attempt>".
MARK = "AI_TOOLKIT_ATTEMPT"
_LAST_BYTES = 16384


@dataclass(frozen=True, slots=True)
class Exit:
    """How the process of an attempt ended; error: why there never was one."""

    code: int | None = None
    signal: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Owners:
    """Who runs an attempt: the shim, the program (None: not started yet), or nobody ever (revoked)."""

    shim: ProcessIdentity | None = None
    child: ProcessIdentity | None = None
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class AttemptFolder:
    """The paths of an attempt, and what its files say."""

    root: Path
    job_id: str
    attempt: int

    @property
    def path(self) -> Path:
        """The folder."""
        return self.root / self.job_id / f"{self.attempt}"

    @property
    def mark(self) -> str:
        """What its processes carry as `MARK`."""
        return f"{self.job_id}.{self.attempt}"

    @property
    def config_path(self) -> Path:
        """The snapshot of the config that is run."""
        return self.path / "config.yaml"

    @property
    def output_path(self) -> Path:
        """What it printed."""
        return self.path / "output.txt"

    @property
    def owners_path(self) -> Path:
        """Who runs it."""
        return self.path / "proc.json"

    @property
    def exit_path(self) -> Path:
        """How it ended."""
        return self.path / "exit.json"

    def claim(self, owners: Owners) -> bool:
        """Write proc.json if there is none; False if another was first, so a start can be revoked."""
        part = self.path / f".proc.{secrets.token_hex(4)}"
        atomic.write_json(part, _owners_json(owners), durable=False)
        try:
            os.link(part, self.owners_path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            return self._claim_unlinked(owners)
        finally:
            part.unlink(missing_ok=True)
        return True

    def _claim_unlinked(self, owners: Owners) -> bool:
        try:
            handle = os.open(self.owners_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(_owners_json(owners), file)
        return True

    def write_owners(self, owners: Owners) -> None:
        """Replace proc.json; for its owner."""
        atomic.write_json(self.owners_path, _owners_json(owners), durable=False)

    def owners(self) -> Owners | None:
        """What proc.json says; None if there is none yet, or half of one."""
        content = _read_json(self.owners_path)
        if content is None:
            return None
        shim, child = (_identity(content.get(name)) for name in ("shim", "child"))
        return Owners(shim, child, bool(content.get("revoked")))

    def write_exit(self, ending: Exit) -> None:
        """Write exit.json, to survive a power cut. Raises RunError if the disk refuses."""
        atomic.write_json(self.exit_path, {"schema_version": 1, **asdict(ending)})

    def exit(self) -> Exit | None:
        """What exit.json says; None if there is none."""
        content = _read_json(self.exit_path)
        if content is None:
            return None
        return Exit(content.get("code"), content.get("signal"), str(content.get("error", "")))

    def last_output(self) -> str:
        """The end of the output."""
        with suppress(OSError), self.output_path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LAST_BYTES))
            return file.read().decode("utf-8", "replace")
        return ""


def _read_json(path: Path) -> Mapping[str, Any] | None:
    try:
        content = json.loads(atomic.read_bytes(path))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _owners_json(owners: Owners) -> dict[str, Any]:
    return {"schema_version": 1, **asdict(owners)}


def _identity(content: Any) -> ProcessIdentity | None:
    try:
        return ProcessIdentity(**content)
    except TypeError:
        return None
