"""What the web server is told by its environment. Torch-free."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.errors import Problem, UserError
from toolkit.paths import DATASETS_ROOT, OUTPUT_ROOT, ROOT
from web.queue.devices import parse_devices

PORT = 8675


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """Where the server keeps its data, who may reach it, and what it runs jobs with.

    import_roots: what else, besides the folder of runs, pages may import from. devices: the lanes there are.
    command: what a job's config file is appended to. schedule: whether this server starts jobs. tick_s: how
    often it looks after them. stop_grace_s: how long a stop may stand still.
    """

    data_root: Path = ROOT / "data"
    output_root: Path = OUTPUT_ROOT
    datasets_root: Path = DATASETS_ROOT
    import_roots: tuple[Path, ...] = ()
    token: str | None = field(default=None, repr=False)
    allowed_hosts: frozenset[str] = frozenset()
    host: str = "127.0.0.1"
    port: int = PORT
    root_path: str = ""
    secure_cookie: bool = False
    devices: tuple[str, ...] = ("cpu:0",)
    command: tuple[str, ...] = (sys.executable, str(ROOT / "run.py"))
    schedule: bool = True
    tick_s: float = 0.5
    stop_grace_s: float = 120.0

    @property
    def database_path(self) -> Path:
        """The server's own database."""
        return self.data_root / "web.sqlite"

    @property
    def jobs_root(self) -> Path:
        """The folder of what the server keeps of each job's attempts."""
        return self.data_root / "jobs"


def from_environment(environment: Mapping[str, str] | None = None) -> WebSettings:
    """The settings that the environment asks for. Raises UserError with everything that is wrong with it."""
    env = os.environ if environment is None else environment
    problems: list[Problem] = []

    def value(name: str) -> str:
        return env.get(name, "").strip()  # `set NAME=x && ...` on Windows leaves a blank behind x

    token = value("AI_TOOLKIT_AUTH") or None
    host = value("AI_TOOLKIT_HOST") or "127.0.0.1"
    if not is_loopback(host) and token is None:
        problems.append(
            Problem(
                "web.open",
                f"would listen on {host} for everyone: no AI_TOOLKIT_AUTH is set",
                remedy="set AI_TOOLKIT_AUTH to a long secret, or AI_TOOLKIT_HOST to 127.0.0.1",
            )
        )
    port = value("AI_TOOLKIT_PORT") or str(PORT)
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        problems.append(Problem("web.setting", f"AI_TOOLKIT_PORT is {port!r}", remedy="a number up to 65535"))
    root_path = value("AI_TOOLKIT_ROOT_PATH").rstrip("/")
    if root_path and not root_path.startswith("/"):
        problems.append(
            Problem("web.setting", f"AI_TOOLKIT_ROOT_PATH is {root_path!r}", remedy="begin it with /")
        )
    try:
        devices = parse_devices(value("AI_TOOLKIT_DEVICES").split(",")) if value("AI_TOOLKIT_DEVICES") else ()
    except ValueError as error:
        problems.append(Problem("web.setting", f"AI_TOOLKIT_DEVICES: {error}"))
        devices = ()
    if problems:
        raise UserError(problems)
    return WebSettings(
        data_root=Path(value("AI_TOOLKIT_DATA") or ROOT / "data").expanduser().resolve(),
        output_root=Path(value("AI_TOOLKIT_OUTPUT") or OUTPUT_ROOT).expanduser().resolve(),
        datasets_root=Path(value("AI_TOOLKIT_DATASETS") or DATASETS_ROOT).expanduser().resolve(),
        import_roots=_folders(value("AI_TOOLKIT_IMPORT_ROOTS")),
        token=token,
        allowed_hosts=frozenset(value("AI_TOOLKIT_ALLOWED_HOSTS").lower().replace(",", " ").split()),
        host=host,
        port=int(port),
        root_path=root_path,
        secure_cookie=value("AI_TOOLKIT_SECURE_COOKIE").lower() in ("1", "true", "yes"),
        devices=devices or detect_devices(),
    )  # fmt: skip


def _folders(text: str) -> tuple[Path, ...]:
    """The folders in a text that separates them as PATH does."""
    return tuple(Path(part).expanduser().resolve() for part in text.split(os.pathsep) if part.strip())


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def detect_devices() -> tuple[str, ...]:
    """A lane for each GPU that nvidia-smi lists, and one for the CPU."""
    program = shutil.which("nvidia-smi")
    count = 0
    if program is not None:
        command = [program, "--query-gpu=index", "--format=csv,noheader"]
        try:
            shown = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
            count = sum(line.strip().isdigit() for line in shown.stdout.splitlines())
        except (OSError, subprocess.TimeoutExpired):
            count = 0
    return (*(f"gpu:{index}" for index in range(count)), "cpu:0")
