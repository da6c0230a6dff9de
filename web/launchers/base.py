"""What starts jobs: a protocol of five calls. What is known of a job lies in the folder of its attempt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from web.launchers.attempt import AttemptFolder, Exit

Signal = Literal["interrupt", "terminate", "kill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """What to start: the program, its arguments and variables, and the folder that keeps account of it."""

    folder: AttemptFolder
    argv: Sequence[str]
    environment: Mapping[str, str]
    cwd: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What can be seen of an attempt.

    claimed: somebody has begun to run it. revoked: nobody ever will. started: its program has been started.
    alive: whether any process of it runs (None: that cannot be seen from here). exit: how it ended.
    """

    claimed: bool = False
    revoked: bool = False
    started: bool = False
    alive: bool | None = False
    rebooted: bool = False
    exit: Exit | None = None


class Launcher(Protocol):
    """Starts attempts and looks after them. Another server may make every call than the one that started."""

    def submit(self, spec: LaunchSpec) -> None:
        """Start an attempt. Raises OSError if that is impossible."""

    def unstarted(self, folder: AttemptFolder) -> str | None:
        """Of an attempt that nobody has claimed: why nobody will, "" if unknown, None if it may be."""

    def revoke(self, folder: AttemptFolder) -> bool:
        """See to it that an attempt never starts; False if it has been claimed."""

    def look(self, folder: AttemptFolder) -> Evidence:
        """What can be seen now."""

    def signal(self, folder: AttemptFolder, name: Signal) -> None:
        """Signal the program with everything it started; kill leaves nothing of it."""
