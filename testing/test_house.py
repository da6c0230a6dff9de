"""The tests' own safety nets: no network, no silent skips, and a score gate that can fail."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("family", "address"),
    [(socket.AF_INET, ("192.0.2.1", 80)), (socket.AF_INET6, ("2001:db8::1", 80))],
)
def test_connections_off_this_machine_are_refused(family, address):
    with socket.socket(family) as client:
        client.settimeout(1)
        with pytest.raises(OSError, match="may not use the network"):
            client.connect(address)
        with pytest.raises(OSError, match="may not use the network"):
            client.connect_ex(address)


def test_names_are_not_looked_up():
    with pytest.raises(OSError, match="may not use the network"):
        socket.create_connection(("example.invalid", 443), timeout=1)


def test_loopback_and_pairs_work():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(5) == b"hello"
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"x")
        assert right.recv(1) == b"x"


def test_one_thread_and_no_hub():
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def run_pytest(folder: Path, *arguments: str, ci: str) -> subprocess.CompletedProcess[str]:
    """Run the files of a folder under this project's conftest, in a process of their own."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "testing.conftest",
        "-q",
        "-c",
        os.devnull,
        "--rootdir",
        str(folder),
    ]
    return subprocess.run(
        [*command, *arguments, str(folder)],
        cwd=ROOT, env={**os.environ, "CI": ci}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


SKIPPING = {
    "decorator": "import pytest\n\n@pytest.mark.skip(reason='for a reason')\ndef test_it(): pass\n",
    "in the body": "import pytest\n\ndef test_it(): pytest.skip('for a reason')\n",
    "in a fixture": (
        "import pytest\n\n@pytest.fixture\ndef thing(): pytest.skip('for a reason')\n"
        "\ndef test_it(thing): pass\n"
    ),
    "whole file": "import pytest\n\npytest.skip('for a reason', allow_module_level=True)\n",
}


@pytest.mark.parametrize("source", SKIPPING.values(), ids=SKIPPING.keys())
def test_a_skip_fails_under_ci_and_only_there(tmp_path, source):
    (tmp_path / "test_passing.py").write_text("def test_passing(): pass\n")
    (tmp_path / "test_skipping.py").write_text(source)

    at_home = run_pytest(tmp_path, ci="")
    assert (at_home.returncode, "1 passed, 1 skipped" in at_home.stdout) == (0, True), at_home.stdout

    under_ci = run_pytest(tmp_path, ci="true")
    assert under_ci.returncode != 0
    assert "a skipped test is a failure under CI" in under_ci.stdout
    assert "for a reason" in under_ci.stdout


def test_expected_failures_are_no_skips(tmp_path):
    (tmp_path / "test_known.py").write_text(
        "import pytest\n\n@pytest.mark.xfail\ndef test_it(): assert False\n"
    )
    assert run_pytest(tmp_path, ci="true").returncode == 0


def load_gate() -> ModuleType:
    """The module .ci/assert_demo.py, which lies outside every package."""
    spec = importlib.util.spec_from_file_location("assert_demo", ROOT / ".ci" / "assert_demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = {"before": 0.02, "after": 0.9, "kept_before": 0.9, "kept_after": 0.84}


def test_a_good_score_passes():
    assert load_gate().failures(GOOD) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"before": 0.21}, "without the LoRA"),
        ({"after": 0.79}, "with the LoRA"),
        ({"kept_after": 0.79}, "without the trigger"),
        ({"kept_before": 0.7}, "without the trigger"),
        ({"after": float("nan")}, "with the LoRA"),
        ({"kept_after": float("nan")}, "without the trigger"),
    ],
)
def test_a_bad_score_is_named(change, complaint):
    assert [complaint in line for line in load_gate().failures(GOOD | change)] == [True]


def test_a_missing_figure_is_no_pass():
    with pytest.raises(KeyError, match="kept_after"):
        load_gate().failures({key: value for key, value in GOOD.items() if key != "kept_after"})
