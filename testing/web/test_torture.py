"""The torture of the queue in small, and that its judge would notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from testing.torture import queue
from testing.torture.judge import chain_faults, judge, overlaps, untruth
from testing.torture.real_runs import REAL_STEPS, real_attempts, real_steps
from testing.web.conftest import ROOT
from web.launchers.attempt import MARK


@pytest.mark.slow
def test_the_queue_survives_being_killed(capsys):
    assert (
        queue.main(["--jobs", "40", "--real", "3", "--seed", "3", "--minutes", "6", "--pause", "0.3"]) == 0
    ), capsys.readouterr().out


def test_a_training_is_through_only_with_its_model(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    rows = [
        {"step": step, "loss": 1.0, "attempt": 1 + (step > 8), "time": float(step)} for step in range(1, 17)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert real_steps(run) == REAL_STEPS - 1
    (run / "run.safetensors").touch()
    assert real_steps(run) == REAL_STEPS
    assert list(real_attempts(run, "run")) == [(1.0, 8.0, "run (attempt 1)"), (9.0, 16.0, "run (attempt 2)")]


def event(before: str | None, after: str | None) -> dict:
    """A transition."""
    return {"from_status": before, "to_status": after}


def test_a_job_that_ran_twice_at_once_is_noticed(tmp_path):
    given = {"j": {"name": "one", "devices": ["gpu:0"], "steps": 3, "exit": 0}}
    jobs = [
        {"id": "j", "status": "completed", "reason": "", "attempt": 1, "exit": {"code": 0, "signal": None}}
    ]
    folder = tmp_path / "output" / "one"
    folder.mkdir(parents=True)
    (folder / "step.txt").write_text("3")
    events = {
        "j": [
            event(None, "draft"),
            event("draft", "queued"),
            event("queued", "starting"),
            event("starting", "completed"),
        ]
    }
    queue_now = {"lanes": [{"device": "gpu:0", "job_id": None}]}

    def found(marks: str) -> list[str]:
        (folder / "marks.txt").write_text(marks)
        return judge(given, jobs, events, queue_now, folder=tmp_path, kills={}, stops={"j": set()})

    assert found("10 1.0 1\n10 2.0 2\n11 3.0 3\n") == []
    assert len(found("10 1.0 1\n11 2.0 2\n10 3.0 3\n")) == 2  # the job, and its device
    queue_now["lanes"][0]["job_id"] = "j"
    assert found("10 1.0 1\n") == ["gpu:0 is held by j"]
    assert judge(
        {**given, "k": given["j"]}, jobs, events, {"lanes": []}, folder=tmp_path, kills={}, stops={"j": set()}
    ) == ["k is not there"]


def test_a_process_that_was_left_is_noticed(tmp_path):
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, MARK: "j.1"}, cwd=ROOT
    )
    try:
        given = {"j": {"name": "one", "devices": ["gpu:0"], "steps": 0, "exit": 0}}
        jobs = [
            {
                "id": "j",
                "status": "completed",
                "reason": "",
                "attempt": 1,
                "exit": {"code": 0, "signal": None},
            }
        ]
        found = judge(given, jobs, {"j": []}, {"lanes": []}, folder=tmp_path, kills={}, stops={"j": set()})
        assert found == [f"one left processes [{left.pid}]"]
    finally:
        left.kill()
        left.wait()


def test_states_that_do_not_follow_are_noticed():
    assert list(chain_faults([event(None, "draft"), event("draft", "queued")])) == []
    assert len(list(chain_faults([event(None, "draft"), event("draft", "running")]))) == 1
    assert len(list(chain_faults([event(None, "draft"), event("queued", "starting")]))) == 2
    assert (
        overlaps([(1.0, 2.0, "a"), (3.0, 4.0, "b")]) == []
        and len(overlaps([(1.0, 3.0, "a"), (2.0, 4.0, "b")])) == 1
    )


# status, code, signal, steps made (of 3), exit it was told, what was killed, stops asked for, whether it
# is true
STATES = [
    ("completed", 0, None, 3, 0, set(), set(), True),
    ("completed", 0, None, 2, 0, set(), set(), False),
    ("completed", 0, None, 3, 1, set(), set(), False),
    ("stopped", 3, None, 1, 0, set(), {"save"}, True),
    ("stopped", 3, None, 1, 0, set(), set(), False),
    ("failed", None, 9, 1, 0, {"child"}, set(), True),
    ("failed", None, 9, 1, 0, {"shim"}, set(), False),
    ("failed", 1, None, 3, 1, set(), set(), True),
    ("failed", 1, None, 3, 0, set(), set(), False),
    ("lost", None, None, 1, 0, {"shim"}, set(), True),
    ("lost", None, None, 1, 0, {"child"}, set(), False),
    ("running", None, None, 1, 0, set(), set(), False),
]


@pytest.mark.parametrize("case", STATES)
def test_a_state_that_is_not_true_is_noticed(tmp_path, case):
    status, code, signal, steps, exit, killed, stops, is_true = case
    (tmp_path / "step.txt").write_text(str(steps))
    job = {"id": "j", "attempt": 1, "status": status, "exit": {"code": code, "signal": signal}}
    told = {"steps": 3, "exit": exit}
    assert (untruth(job, told, tmp_path, {("j", 1): killed}, stops) is None) == is_true
