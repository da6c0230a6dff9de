"""A running job, steered from another shell by run.py."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from testing.benchmarks import bench_check
from testing.job_helpers import run_cli, start_job, training_config, wait_until
from toolkit.runs.status import read_status


@pytest.mark.slow
def test_a_job_is_watched_steered_and_found_killed(tmp_path):
    changes = {
        "train": {"steps": 100_000},
        "save": {"save_every": 0},
        "sample": {"sample_every": 0, "prompts": []},
    }
    training_config(tmp_path, Path("tiny-sd"), "long", **changes, training_folder=str(tmp_path / "output"))
    folder = tmp_path / "output" / "long"
    job = start_job(tmp_path, "long.yml")
    try:
        wait_until(lambda: (s := read_status(folder / "status.json")) is not None and s.step >= 2, job)
        code, listed = run_cli(tmp_path, "--list")
        assert code == 0
        assert ["long", "running"] in [line.split()[:2] for line in listed.splitlines()]
        code, told = run_cli(tmp_path, "--status", "long")
        assert code == 0
        assert told.startswith("long: running: training, step ")
        code, told = run_cli(tmp_path, "--save", "long")
        assert (code, "it saves after the current step, and goes on" in told) == (0, True)
        wait_until(lambda: any(folder.glob("long_*.safetensors")), job)
        os.kill(job.pid, signal.SIGKILL)
        job.communicate(timeout=30)
        code, told = run_cli(tmp_path, "--status", "long", "--json")
        status = json.loads(told)
        assert (status["state"], status["exit_code"]) == ("killed", 137)
        assert any("train.batch_size: 1" in remedy for remedy in status["remedies"])
        code, told = run_cli(tmp_path, "--stop", "long")
        assert code == 1
        assert "cannot obey 'stop': nothing runs there" in told
    finally:
        job.kill()
    job = start_job(tmp_path, "long.yml")
    try:
        again = lambda: read_status(folder / "status.json")  # noqa: E731
        wait_until(lambda: again().attempt == 2 and again().phase == "training", job)
        code, told = run_cli(tmp_path, "--stop", "long")
        assert (code, "it ends after the current step, with a checkpoint" in told) == (0, True)
        output, _ = job.communicate(timeout=60)
        assert job.returncode == 3
        assert "note: attempt 1 was killed at step" in output
    finally:
        job.kill()


def test_a_name_that_is_no_run(tmp_path):
    code, told = run_cli(tmp_path, "--status", "nothing_like_it")
    assert code == 2
    assert told.startswith("error: no run named 'nothing_like_it' (looked in ")


@pytest.mark.slow
def test_the_benchmark_of_the_check_runs():
    assert bench_check.main(["--quick"]) == 0
