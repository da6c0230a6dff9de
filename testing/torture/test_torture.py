"""The torture itself: it kills, it compares, and it notices a resume that is broken."""

import json
import os
import subprocess
import sys

import pytest

from testing.torture.recording import differences, last_rows, position_of, read_rows
from toolkit.paths import ROOT

COMMAND = [sys.executable, "-m", "testing.torture.resume"]


def torture(tmp_path, *arguments: str) -> tuple[int, dict, str]:
    """(exit code, row of the ledger, output) of a call in a process of its own, as it forks."""
    ledger = tmp_path / "ledger.jsonl"
    result = subprocess.run(
        [*COMMAND, "--ledger", str(ledger), *arguments],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=1100, check=False,
    )  # fmt: skip
    output = result.stdout + result.stderr
    assert ledger.exists(), output
    return result.returncode, json.loads(ledger.read_text().splitlines()[-1]), output


@pytest.mark.slow
def test_killed_runs_end_with_the_bits_of_those_that_were_not(tmp_path):
    code, row, output = torture(tmp_path, "--kills", "52")
    assert (code, row["differences"], row["kills"]) == (0, 0, 52), output
    assert row["combinations"] == 26 and row["completed"] >= 26
    assert row["planted"] >= 20 and row["random"] >= 20 and len(row["points"]) >= 11


@pytest.mark.slow
def test_a_resume_that_loses_its_place_is_noticed(tmp_path):
    only = ("--only", "lora, accumulation 1, no EMA, 0 workers")
    code, row, output = torture(tmp_path, "--kills", "8", *only, "--sabotage", "--seed", "1")
    assert code == 1 and row["differences"] >= 1, output
    assert "hash of weights" in output


def test_rows_are_told_apart_and_torn_ones_passed_over(tmp_path):
    path = tmp_path / "rows"
    path.write_text('{"at": "1", "loss": 1}\n{"at": "2"}\n{"at": "1", "loss": 2}\n{"at": "3"')
    assert len(read_rows(path)) == 3
    assert last_rows(path) == {"1": {"at": "1", "loss": 2}, "2": {"at": "2"}}
    assert differences(last_rows(path), {"1": {"at": "1", "loss": 2}, "4": {}}) == ["2", "4"]
    assert read_rows(tmp_path / "none") == []


def test_positions_pass_over_what_is_left_out():
    assert [position_of(3, index, {4, 5, 9}) for index in range(4)] == [3, 6, 7, 8]
