"""Who a process is, so that another with its number is not taken for it. Torch-free."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, named for ever: `started` is its start time in the system's own unit, "" if unknown."""

    host: str
    boot_id: str
    namespace: str
    pid: int
    started: str

    def is_running(self) -> bool | None:
        """Whether this process still runs; None if it cannot be told from here (other host or container)."""
        here = this_process()
        if self.host != here.host:
            return None
        if self.boot_id != here.boot_id:
            return False
        if self.namespace != here.namespace:
            return None
        started = _start_time(self.pid)
        return started is not None and started == self.started


def this_process() -> ProcessIdentity:
    """The identity of the calling process."""
    pid = os.getpid()
    boot_id = _read_line("/proc/sys/kernel/random/boot_id")
    return ProcessIdentity(socket.gethostname(), boot_id, _namespace(), pid, _start_time(pid) or "")


def identity_of(pid: int) -> ProcessIdentity | None:
    """The identity of a process of this machine, or None if there is none of this number."""
    started = _start_time(pid)
    return None if started is None else replace(this_process(), pid=pid, started=started)


def start_of_this_process() -> float:
    """When the calling process began, in seconds since 1970."""
    if hasattr(time, "CLOCK_BOOTTIME") and (ticks := _start_time_linux(os.getpid())):
        began = int(ticks) / os.sysconf("SC_CLK_TCK")
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    import psutil

    return float(psutil.Process().create_time())


def _read_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _start_time(pid: int) -> str | None:
    """When `pid` started, "" if it runs but that cannot be told, None if it does not run."""
    if os.name == "nt":
        return _start_time_windows(pid)
    if Path("/proc/self/stat").exists():
        return _start_time_linux(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def _start_time_linux(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the command in parentheses and may itself hold blanks and parentheses.
    fields = stat.rpartition(")")[2].split()
    state, started = fields[0], fields[19]
    return None if state in "ZX" else started  # a zombie has ended, only nobody asked for its exit code


def _start_time_windows(pid: int) -> str | None:
    # os.kill(pid, 0) would send Ctrl-C there, so the kernel is asked for the process's times.
    import ctypes
    from ctypes import wintypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel.OpenProcess.restype = wintypes.HANDLE
    handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
    if not handle:
        denied = ctypes.get_last_error() == 5  # type: ignore[attr-defined,unused-ignore]
        return "" if denied else None
    try:
        times = [wintypes.FILETIME() for _ in range(4)]
        code = wintypes.DWORD()
        with suppress(OSError):
            kernel.GetProcessTimes(wintypes.HANDLE(handle), *map(ctypes.byref, times))
            kernel.GetExitCodeProcess(wintypes.HANDLE(handle), ctypes.byref(code))
        if code.value != 259:  # STILL_ACTIVE
            return None
        return str(times[0].dwHighDateTime << 32 | times[0].dwLowDateTime)
    finally:
        kernel.CloseHandle(wintypes.HANDLE(handle))
