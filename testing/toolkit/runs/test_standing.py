"""How a run stands, found by name and told in words: running, ended, killed, silent."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit.errors import RunError, UserError
from toolkit.runs import atomic, standing
from toolkit.runs.find import find_run, is_run, list_runs
from toolkit.runs.lock import RunLock, holder_runs
from toolkit.runs.process import this_process
from toolkit.runs.status import Status
from toolkit.runs.steering import answer

CONFIG = {
    "job": "train",
    "config": {
        "name": "foo",
        "process": [{"type": "sd_trainer", "train": {"batch_size": 4, "gradient_checkpointing": False}}],
    },
}


def dead_process() -> dict[str, Any]:
    """The identity of a process of this machine that has ended."""
    script = (
        "import json; from dataclasses import asdict; from toolkit.runs.process import this_process;"
        "print(json.dumps(asdict(this_process())))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return json.loads(output)


@pytest.fixture(scope="module")
def dead() -> dict[str, Any]:
    return dead_process()


def identity(process: dict[str, Any]) -> dict[str, Any]:
    return {
        "pid": process["pid"], "host": process["host"], "boot_id": process["boot_id"],
        "namespace": process["namespace"], "pid_started": process["started"],
    }  # fmt: skip


def make_run(root: Path, name: str = "foo", process: dict[str, Any] | None = None, **values: Any) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    status = Status(job="train", name=name, **identity(process or asdict(this_process())))
    usual = {"phase": "training", "step": 12, "total_steps": 48, "speed": 0.5, "eta_s": 72.0, "loss": 0.1}
    atomic.write_json(folder / "status.json", asdict(replace(status, **(usual | values))))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return folder


def test_a_run_of_a_living_process_is_running(tmp_path):
    run = standing.look(make_run(tmp_path))
    assert run.state == "running"
    assert standing.headline(run) == (
        "foo: running: training, step 12 of 48 (25 %), 2.00 s/step, about 1 min left"
    )
    told = run.as_json()
    assert (told["state"], told["status"]["step"], told["name"]) == ("running", 12, "foo")
    json.dumps(told)


def test_other_phases_are_named_with_what_they_do(tmp_path):
    run = standing.look(
        make_run(tmp_path, phase="caching", info="latents 3/7", speed=None, eta_s=None, step=0)
    )
    assert standing.headline(run) == "foo: running: caching (latents 3/7), step 0 of 48 (0 %)"


def test_a_run_without_its_process_was_killed_and_gets_remedies(tmp_path, dead):
    run = standing.look(make_run(tmp_path, process=dead))
    assert run.state == "killed"
    first, advice, *_ = standing.describe(run)
    assert first.startswith("foo: was killed at step 12 while training")
    assert "probably the system ran out of memory (exit code 137)" in first
    assert "set train.gradient_checkpointing: true" in advice
    assert "set train.batch_size: 1 and train.gradient_accumulation: 4" in advice
    assert advice.index("gradient_checkpointing") < advice.index("batch_size")
    assert run.as_json()["exit_code"] == 137


def test_another_process_of_the_same_number_is_not_the_run(tmp_path):
    process = asdict(this_process()) | {"started": "1"}
    assert standing.look(make_run(tmp_path, process=process)).state == "killed"


def test_a_machine_that_was_started_anew_has_killed_its_runs(tmp_path):
    process = asdict(this_process()) | {"boot_id": "another"}
    assert standing.look(make_run(tmp_path, process=process)).state == "killed"


@pytest.mark.parametrize(
    ("phase", "info", "line"),
    [
        ("finished", "", "foo: finished, step 12 of 48 (25 %)"),
        ("stopped", "SIGINT", "foo: stopped after step 12: SIGINT"),
        ("failed", "loss is not finite", "foo: failed after step 12: loss is not finite"),
    ],
)
def test_runs_that_said_how_they_ended(tmp_path, dead, phase, info, line):
    run = standing.look(make_run(tmp_path, process=dead, phase=phase, info=info))
    assert (run.state, standing.headline(run)) == (phase, line)


def test_a_run_elsewhere_is_listened_to(tmp_path):
    far = asdict(this_process()) | {"host": "elsewhere"}
    folder = make_run(tmp_path, process=far)
    (folder / "run.lock").write_text(json.dumps(far | {"token": "a", "since": "b"}))
    assert standing.look(folder, listen_s=0.3).state == "silent"
    timer = threading.Timer(0.3, lambda: make_run(tmp_path, process=far, alive=5))
    timer.start()
    try:
        began = time.monotonic()
        assert standing.look(folder, listen_s=20).state == "running"
        assert time.monotonic() - began < 10
    finally:
        timer.join()


def test_a_run_that_ends_while_we_ask_is_not_killed(tmp_path, dead, monkeypatch):
    folder = make_run(tmp_path, process=dead)
    answers = iter([standing.read_status(folder / "status.json")])
    monkeypatch.setattr(
        standing, "read_status",
        lambda path: next(answers, None) or replace(Status(), phase="finished", name="foo", step=48),
    )  # fmt: skip
    assert standing.look(folder).state == "finished"


def test_a_folder_without_status_is_unknown(tmp_path):
    folder = tmp_path / "foo"
    folder.mkdir()
    (folder / "config.yaml").write_text("x: 1")
    run = standing.look(folder)
    assert run.state == "unknown"
    assert "no readable status.json" in standing.headline(run)


def test_the_next_start_is_told_of_a_killed_one(tmp_path, dead):
    folder = make_run(tmp_path, process=dead, attempt=3)
    told = standing.killed_before(folder)
    assert told is not None
    assert told.startswith("attempt 3 was killed at step 12 while training")
    assert "gradient_checkpointing" in told
    make_run(tmp_path, process=dead, phase="stopped")
    assert standing.killed_before(folder) is None
    assert standing.killed_before(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["stop", "save", "sample"])
def test_a_running_run_is_given_commands(tmp_path, name):
    folder = make_run(tmp_path)
    line = standing.command(folder, name)
    assert line.startswith(f"foo: told to {name} at step 12: it ")
    assert (folder / "commands" / name).is_file()


def test_nothing_is_told_to_a_run_that_cannot_hear(tmp_path, dead):
    folder = make_run(tmp_path, process=dead)
    with pytest.raises(RunError, match="cannot obey 'stop': nothing runs there") as caught:
        standing.command(folder, "stop")
    assert caught.value.problems[0].code == "run.not_running"
    assert not (folder / "commands").exists()
    with pytest.raises(ValueError, match="unknown command"):
        standing.command(folder, "dance")


def test_runs_are_found_by_name_and_by_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_run(tmp_path / "output", "my_lora")
    roots = [tmp_path / "output"]
    assert find_run("my_lora", roots) == folder
    assert find_run(str(folder), []) == folder
    assert find_run("output/my_lora", []).resolve() == folder
    assert list_runs([*roots, tmp_path / "none"]) == [folder]
    assert not is_run(tmp_path)


def test_a_wrong_name_gets_a_suggestion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "output", "my_lora")
    with pytest.raises(UserError, match=r"no run named 'my_lara' \(did you mean 'my_lora'\?\)") as caught:
        find_run("my_lara", [tmp_path / "output"])
    assert caught.value.problems[0].code == "run.not_found"
    with pytest.raises(UserError, match="is no run's folder"):
        find_run(str(tmp_path), [tmp_path / "output"])


def test_answers_for_people_and_programs(tmp_path, dead):
    make_run(tmp_path, "a")
    make_run(tmp_path, "bb", process=dead, phase="finished", step=48)
    told = answer("list", roots=[tmp_path])
    assert [line.split()[:2] for line in told.lines] == [["a", "running"], ["bb", "finished"]]
    assert [run["state"] for run in told.data["runs"]] == ["running", "finished"]
    assert answer("status", "a", roots=[tmp_path]).lines[0].startswith("a: running")
    assert answer("save", "a", roots=[tmp_path]).data["command"] == "save"
    assert "no runs in" in answer("list", roots=[tmp_path / "none"]).lines[0]


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (90, "2 min"), (3900, "1 h 05 min")])
def test_durations(seconds, text):
    assert standing.duration(seconds) == text


def test_who_holds_a_lock(tmp_path, dead):
    path = tmp_path / "run.lock"
    assert holder_runs(path) is False
    with RunLock(path):
        assert holder_runs(path) is True
    path.write_text(json.dumps(dead | {"token": "a", "since": "b"}))
    assert holder_runs(path) is False
    path.write_text(json.dumps(dead | {"host": "elsewhere", "token": "a", "since": "b"}))
    assert holder_runs(path) is None


def test_a_run_of_a_newer_program_does_not_hide_the_others(tmp_path):
    make_run(tmp_path, "a", phase="finished")
    (make_run(tmp_path, "b") / "status.json").write_text('{"schema_version": 99}')
    told = answer("list", roots=[tmp_path])
    assert [(run["name"], run["state"]) for run in told.data["runs"]] == [("a", "finished"), ("b", "unknown")]
    with pytest.raises(RunError, match="newer than this program reads"):
        answer("status", "b", roots=[tmp_path])
