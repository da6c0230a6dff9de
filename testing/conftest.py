"""What every test runs under: one thread, no network, no hub; under CI a skip is a failure."""

from __future__ import annotations

import os

# Before torch is imported anywhere: results are bit-exact per thread count, and two processes with two
# threads each on two cores are many times slower than one thread each. Subprocesses inherit these.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"

import ipaddress
import socket
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

# Caches of latents and prompts go to a folder of this session, not to the user's; matplotlib's fonts stay.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
_CACHE = tempfile.TemporaryDirectory(prefix="ai-toolkit-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

SLOW_TEST_TIMEOUT_S = 1200


class NetworkBlocked(OSError):
    """A test tried to leave this machine."""


def is_local(host: object) -> bool:
    """Whether a host stays on this machine: loopback addresses, localhost, and None (any interface)."""
    if host is None or host in ("", "localhost", b"localhost"):
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse_remote(host: object) -> None:
    if not is_local(host):
        raise NetworkBlocked(f"tests may not use the network: {host!r}")


def block_network() -> None:
    """Let sockets of this process reach loopback and unix addresses only, and look up no other name."""
    connect, connect_ex, lookup = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_remote(address[0])
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_remote(address[0])
        return connect_ex(self, address)

    def guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_remote(host)
        return lookup(host, *args, **kwargs)

    socket.socket.connect = guarded_connect  # type: ignore[method-assign, assignment]
    socket.socket.connect_ex = guarded_connect_ex  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = guarded_lookup


block_network()


def under_ci() -> bool:
    """Whether this is a CI run, where a test that did not run has not passed."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false", "no")


def _fail_if_skipped(report: Any) -> None:
    """Turn a skip into a failure; an expected failure (xfail) also reports "skipped" and stays as it is."""
    if not under_ci() or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: a skipped test is a failure under CI: {reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Under CI a test that skips fails."""
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    """Under CI a file that skips itself whole fails."""
    report = yield
    _fail_if_skipped(report)
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests a limit of their own."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TEST_TIMEOUT_S))
