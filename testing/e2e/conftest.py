"""A real server with its queue, and a real browser; what a page complains about fails the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testing.e2e import chromium

ROOT = Path(__file__).parents[2]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the server keeps everything; for the pictures of the documentation one with a name to show."""
    if not os.environ.get("SCREENSHOTS"):
        yield tmp_path_factory.mktemp("server")
        return
    folder = Path(tempfile.gettempdir()) / "ai-toolkit"
    folder.mkdir()  # never somebody else's: it is removed at the end
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server(server_folder: Path) -> Iterator[str]:
    """The address of `python -m web` with a CPU lane and folders of its own."""
    folder, port = server_folder, _free_port()
    (folder / "datasets").mkdir()
    for name in ("zrb_faces", "drawings"):
        shutil.copytree(ROOT / "datasets" / name, folder / "datasets" / name)
    environment = {
        **os.environ, "AI_TOOLKIT_PORT": str(port), "AI_TOOLKIT_DEVICES": "cpu:0",
        "AI_TOOLKIT_DATA": str(folder / "data"), "AI_TOOLKIT_OUTPUT": str(folder / "output"),
        "AI_TOOLKIT_DATASETS": str(folder / "datasets"),
    }  # fmt: skip
    environment.pop("AI_TOOLKIT_AUTH", None)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "web"], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, address, folder / "server.log")
        yield address
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):  # noqa: S310 - our own address
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, the system's."""
    from playwright.sync_api import sync_playwright

    program = chromium.find()
    if program is None:
        pytest.fail(f"no Chromium here: make e2e tries to install it; or {chromium.REMEDY}")
    with sync_playwright() as started:
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic"]
        found = started.chromium.launch(executable_path=program, args=options)
        yield found
        found.close()


@contextmanager
def open_tab(browser: Any, server: str, **options: Any) -> Iterator[Any]:
    """A tab at the server. Errors on its console, which breaches of the CSP are too, fail the test."""
    context = browser.new_context(base_url=server, **options)
    tab = context.new_page()
    complaints: list[str] = []
    tab.on("console", lambda said: complaints.append(f"{said.text} {said.location['url']}")
           if said.type in ("error", "warning") else None)  # fmt: skip
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.set_default_timeout(30_000)
    yield tab
    context.close()
    assert not complaints


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    """A tab at the server, on a wide screen."""
    with open_tab(browser, server, viewport={"width": 1280, "height": 900}) as tab:
        yield tab
