"""A Python without our packages: one line that says which Python, and what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

from toolkit.packages import missing_package
from toolkit.paths import ROOT


@pytest.mark.parametrize(
    "command",
    [
        ["run.py", "demo"], ["run.py", "--check", "demo"], ["run.py", "--list"],
        ["run.py", "--new", "datasets/drawings", "--model", "sd15"], ["-m", "web"],
        ["tools/eval_dataset.py", "--dataset-path", "datasets/drawings", "--model", "tiny-sd"],
        ["tools/check_dataset.py", "datasets/drawings"],
        ["tools/caption_dataset.py", "--dataset-path", "datasets/drawings", "--model", "org/model"],
    ],
)  # fmt: skip
def test_another_python_is_named_in_one_line(command):
    without_packages = [sys.executable, "-S", *command]  # -S: none is found
    done = subprocess.run(without_packages, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the Python package '")
    assert f"is not installed for {sys.executable} (make venv" in line


def test_a_module_of_ours_that_is_missing_is_a_bug():
    assert missing_package(ModuleNotFoundError("x", name="toolkit.nowhere")) is None
    assert missing_package(ModuleNotFoundError("x", name="run")) is None
    assert missing_package(ImportError("x", name="torch")) is None
    assert "'torch'" in str(missing_package(ModuleNotFoundError("x", name="torch.nn")))
