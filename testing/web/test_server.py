"""The server as a program: where it listens, that it starts and stops, its events, what it is made of."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from testing.web.conftest import ROOT, TOKEN
from toolkit.errors import UserError
from tools import vendor_web, write_openapi
from web import settings as web_settings


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """The environment of a server in a folder of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AI_TOOLKIT_")}
    return {
        **kept, "AI_TOOLKIT_DATA": str(tmp_path / "data"), "AI_TOOLKIT_OUTPUT": str(tmp_path / "output"),
        "AI_TOOLKIT_DEVICES": "cpu:0", **more,
    }  # fmt: skip


@pytest.fixture
def server(tmp_path) -> Iterator[httpx.Client]:
    """A client of a server that runs as a program of its own."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "web", "--port", str(port)], cwd=ROOT,
                               env=environment(tmp_path), stderr=subprocess.PIPE, text=True)  # fmt: skip
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            client.get("/readyz")
            break
        except httpx.TransportError:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
    client.process = process
    yield client
    client.close()
    process.kill()
    process.communicate()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "my.host"])
def test_another_address_needs_a_token(host):
    with pytest.raises(UserError, match="AI_TOOLKIT_AUTH"):
        web_settings.from_environment({"AI_TOOLKIT_HOST": host})
    with pytest.raises(UserError, match="AI_TOOLKIT_AUTH"):
        web_settings.from_environment({"AI_TOOLKIT_HOST": host, "AI_TOOLKIT_AUTH": "  "})
    opened = web_settings.from_environment({"AI_TOOLKIT_HOST": host, "AI_TOOLKIT_AUTH": f" {TOKEN} "})
    assert (opened.host, opened.token) == (host, TOKEN)


def test_the_program_refuses_to_be_open_to_everyone(tmp_path):
    command = [sys.executable, "-m", "web", "--host", "0.0.0.0", "--port", str(free_port())]
    shown = subprocess.run(
        command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 2 and "AI_TOOLKIT_AUTH" in shown.stderr and "Traceback" not in shown.stderr


def test_settings_come_from_the_environment(tmp_path):
    found = web_settings.from_environment({
        "AI_TOOLKIT_ALLOWED_HOSTS": "My.Box, other", "AI_TOOLKIT_ROOT_PATH": "/ai/",
        "AI_TOOLKIT_DATA": str(tmp_path),
        "AI_TOOLKIT_DEVICES": "gpu:1,gpu:0,cpu:0", "AI_TOOLKIT_PORT": "9000",
    })  # fmt: skip
    assert (found.host, found.port, found.root_path) == ("127.0.0.1", 9000, "/ai")
    assert found.allowed_hosts == {"my.box", "other"} and found.devices == ("cpu:0", "gpu:0", "gpu:1")
    assert found.database_path.parent == tmp_path
    with pytest.raises(UserError) as caught:
        web_settings.from_environment(
            {
                "AI_TOOLKIT_PORT": "x",
                "AI_TOOLKIT_ROOT_PATH": "ai",
                "AI_TOOLKIT_DEVICES": "tpu",
                "AI_TOOLKIT_HOST": "::",
            }
        )
    assert len(caught.value.problems) == 4


def test_gpus_are_counted_without_being_needed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert web_settings.detect_devices() == ("cpu:0",)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0\necho 1\n")
    program.chmod(0o755)
    assert web_settings.detect_devices() == ("gpu:0", "gpu:1", "cpu:0")
    program.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    assert web_settings.detect_devices() == ("cpu:0",)


def test_events_arrive_and_the_server_ends_in_spite_of_them(server):
    with server.stream("GET", "/api/events", headers={"Last-Event-ID": "of-another-server"}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        names = [next(lines) for _ in range(8)]
        assert "event: hello" in names and "event: resync" in names
        body = {"config_yaml": "job: train\nconfig: {name: one}"}
        made = httpx.post(server.base_url.join("/api/jobs"), json=body, trust_env=False)
        job_id = made.json()["id"]
        seen = []
        for line in lines:
            seen.append(line)
            if line == f"event: job-{job_id}":
                assert json.loads(next(lines).removeprefix("data: ")) == {"id": job_id}
                break
        assert "event: jobs" in seen
        server.process.send_signal(signal.SIGINT)
        server.process.wait(timeout=10)


def test_the_scripts_start_it_in_the_background_and_stop_it(tmp_path):
    port = str(free_port())
    variables = environment(tmp_path, AI_TOOLKIT_PORT=port, AI_TOOLKIT_PYTHON=sys.executable)

    def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", f"tools/{name}", *arguments]
        return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=90)

    try:
        started = script("start_ui.sh")
        assert started.returncode == 0, started.stdout + started.stderr
        assert f"http://127.0.0.1:{port}/" in started.stdout
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).json() == {"status": "ok"}
        assert (tmp_path / "data" / "web.pid").exists() and (tmp_path / "data" / "web.log").exists()
        assert "already running" in script("start_ui.sh").stdout
        variables["AI_TOOLKIT_DATA"] = str(tmp_path / "other")  # of another server for the same port
        second = script("start_ui.sh")
        assert second.returncode == 1 and f"port {port} is in use by another program" in second.stderr
        assert not (tmp_path / "other" / "web.pid").exists()
        variables["AI_TOOLKIT_DATA"] = str(tmp_path / "data")
    finally:
        stopped = script("stop_ui.sh")
    assert "stopped" in stopped.stdout and not (tmp_path / "data" / "web.pid").exists()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
    assert "not running" in script("stop_ui.sh").stdout
    refused = script("start_ui.sh", "--host", "0.0.0.0")
    assert refused.returncode == 1 and "AI_TOOLKIT_AUTH" in refused.stderr
    assert not (tmp_path / "data" / "web.pid").exists()


def test_a_number_of_another_program_is_not_stopped(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "web.pid").write_text(f"{other.pid}\n")
        command = ["bash", "tools/stop_ui.sh"]
        shown = subprocess.run(
            command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=30
        )
        assert "not running" in shown.stdout and other.poll() is None
        (tmp_path / "data" / "web.pid").write_text(f"{other.pid}\n")
        variables = environment(tmp_path, AI_TOOLKIT_PYTHON="/bin/false")
        command = ["bash", "tools/start_ui.sh"]
        shown = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=30)
        assert shown.returncode == 1 and "it ended at once" in shown.stderr
    finally:
        other.kill()
        other.wait()


def test_the_powershell_pair_keeps_the_words_of_the_other_and_says_it_is_untested():
    both = (ROOT / "tools" / "ui_process.sh").read_text()
    for name in ("start_ui", "stop_ui"):
        bash, powershell = ((ROOT / "tools" / f"{name}.{kind}").read_text() for kind in ("sh", "ps1"))
        bash = bash.replace(". tools/ui_process.sh", both)
        settings = re.compile(
            r"AI_TOOLKIT_[A-Z_]+|web\.pid|web\.log|\b8675\b|/readyz|-m web|already running|not running"
        )
        assert set(settings.findall(bash)) == set(settings.findall(powershell))
        assert "# Untested:" in powershell


def test_vendored_files_are_those_of_the_list(tmp_path):
    for vendor, packages in (
        (vendor_web.VENDOR, vendor_web.PACKAGES), (vendor_web.TEST_VENDOR, vendor_web.TEST_PACKAGES),
    ):  # fmt: skip
        assert vendor_web.problems(vendor) == []
        folders = {folder for _, _, folder, _ in packages}
        assert folders == {path.name for path in vendor.iterdir() if path.is_dir()}
        assert all((vendor / folder / "LICENSE").stat().st_size > 200 for folder in folders)
    used = set(re.findall(r"static/vendor/([\w./-]+)", (ROOT / "web/templates/page.html").read_text()))
    assert used and all((vendor_web.VENDOR / name).is_file() for name in used)
    copy = tmp_path / "vendor"
    shutil.copytree(vendor_web.VENDOR, copy)
    (copy / "htmx-4.0.1" / "htmx.min.js").write_text("changed")
    (copy / "extra.js").write_text("x")
    (copy / "uplot-1.6.32" / "LICENSE").unlink()
    assert vendor_web.problems(copy) == [
        "uplot-1.6.32/LICENSE is missing", "extra.js is not in checksums.json",
        "htmx-4.0.1/htmx.min.js has changed",
    ]  # fmt: skip


def test_the_description_of_the_api_is_the_committed_one(capsys):
    assert write_openapi.main(["--check"]) == 0, capsys.readouterr().out


def test_every_operation_has_a_name_of_its_own_and_its_errors():
    schema = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    operations = [entry for methods in schema["paths"].values() for entry in methods.values()]
    names = [entry["operationId"] for entry in operations]
    assert len(names) == len(set(names)) > 30
    for entry in operations:
        assert {"401", "403", "422", "500"} <= set(entry["responses"]), entry["operationId"]
        assert entry["description"]
        assert list(entry["responses"]["401"]["content"]) == ["application/problem+json"]
