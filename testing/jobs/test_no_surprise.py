"""What can happen to a run from outside, read as its user reads it: lines, no traceback."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import run
from testing.job_helpers import environment, start_job, training_config, wait_until
from testing.tiny_models import build_tiny_sd15
from toolkit.data import transforms
from toolkit.paths import ROOT
from toolkit.runs import atomic
from toolkit.runs.checkpoints import list_checkpoints
from toolkit.runs.lock import RunLock
from toolkit.runs.metrics import read_metrics
from toolkit.runs.status import read_status
from toolkit.training.checkpoints import load_checkpoint, newest_valid, sha256_of


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def told(capsys):
    """Run job files as the command line does: (exit code, everything that was printed)."""

    def run_it(path: Path) -> tuple[int, str]:
        code = run.main([str(path)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err, captured.err
        return code, captured.out + captured.err

    return run_it


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error: ")]


def newest(folder: Path) -> str:
    found, damaged = newest_valid(folder / "checkpoints")
    assert damaged == []
    return found.name


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[-1][1]).tensors["weights"]


def test_a_disk_that_fills_up_costs_no_valid_checkpoint_and_the_run_goes_on_from_it(
    tmp_path, model, told, monkeypatch
):
    settings = {"save": {"save_every": 2}, "train": {"steps": 8}}
    straight = training_config(tmp_path, model, "straight", **settings)
    assert told(straight)[0] == 0
    path, fsync = training_config(tmp_path, model, "filling", **settings), os.fsync
    folder = tmp_path / "out" / "filling"

    def full_from_step_4(handle):
        if (
            ".step_" in str(Path(f"/proc/self/fd/{handle}").readlink())
            and newest_valid(folder / "checkpoints")[0]
        ):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_from_step_4)
        code, output = told(path)
    assert code == 1
    (line,) = errors(output)
    assert "step_000000004: cannot be written: No space left on device; " in line and "MB free" in line
    assert line.endswith("(free some space, or write to another disk (of runs: training_folder))")
    assert "note: the steps since the last save could not be saved" in output
    assert newest(folder) == "step_000000002"
    assert told(path)[0] == 0, "with space again the same command goes on"
    one, two = weights(tmp_path / "out" / "straight"), weights(folder)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_a_refusal_of_the_kernel_itself_is_one_line(tmp_path, model):
    path = training_config(tmp_path, model, "limited", network=None, save={"save_every": 1})
    result = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), str(path)], cwd=tmp_path, env=environment(tmp_path),
        capture_output=True, text=True, timeout=240, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )  # fmt: skip
    assert result.returncode == 1 and "Traceback" not in result.stdout + result.stderr
    assert "cannot be written: File too large" in errors(result.stderr)[0]
    assert "free some space" in errors(result.stderr)[0]


def test_a_folder_that_cannot_be_written_is_told_before_anything_loads(tmp_path, model, told):
    (tmp_path / "out").write_text("a file in the way")
    code, output = told(training_config(tmp_path, model, "nowhere"))
    assert code != 0 and "Loading model" not in output
    assert "training_folder" in errors(output)[0]
    assert errors(output)[0].endswith("(choose a place you can write to)")


def test_two_runs_into_one_folder(tmp_path, model, told):
    folder = tmp_path / "out" / "taken"
    folder.mkdir(parents=True)
    with RunLock(folder / "run.lock"):
        code, output = told(training_config(tmp_path, model, "taken"))
    assert code == 1 and "Loading model" not in output
    assert f"the run is in use by process {os.getpid()}" in errors(output)[0]


@pytest.mark.parametrize("change", ["changes", "vanishes"])
def test_a_picture_that_is_not_the_same_any_more(tmp_path, model, told, monkeypatch, change):
    path = training_config(
        tmp_path, model, "mid", train={"steps": 12},
        datasets=[{"folder_path": str(tmp_path / "data"), "resolution": 32, "num_workers": 0}],
    )  # fmt: skip
    fit, seen, victim = transforms.fit, [], tmp_path / "data" / "disk2.png"

    def meddle(*args, **kwargs):
        seen.append(1)
        if len(seen) == 12 and change == "changes":
            victim.write_bytes((tmp_path / "data" / "disk3.png").read_bytes())
        elif len(seen) == 12:
            victim.unlink()
        return fit(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(transforms, "fit", meddle)
        code, output = told(path)
    assert code == 2
    (line,) = errors(output)
    done = {"changes": "has changed", "vanishes": "has vanished"}[change]
    assert line.startswith(
        f"error: {victim}: the picture {done} since the run began (the same command goes on"
    )
    step = read_status(tmp_path / "out" / "mid" / "status.json").step
    assert step >= 5 and f"note: the state after step {step} was saved" in output
    if change == "changes":
        victim.unlink()  # it is now the very picture that another one is
    code, output = told(path)
    assert code == 0 and f"resuming from step {step}" in output and "the pictures changed since" in output


def test_a_cache_of_another_version_is_made_anew_and_changes_nothing(tmp_path, model, told):
    settings = {
        "datasets": [{"folder_path": str(tmp_path / "data"), "resolution": 32, "cache_latents_to_disk": True}]
    }
    assert told(training_config(tmp_path, model, "first", **settings))[0] == 0
    (old, *_) = sorted((tmp_path / "cache").rglob("latents/*/*.safetensors"))
    data = old.read_bytes()
    old.write_bytes(data.replace(b'"schema_version":"1"', b'"schema_version":"0"'))
    assert old.read_bytes() != data
    code, output = told(training_config(tmp_path, model, "second", **settings))
    assert code == 0 and f"note: {old}: damaged or of another version; computed again" in output
    assert b'"schema_version":"1"' in old.read_bytes()
    one, two = (read_metrics(tmp_path / "out" / name / "metrics.jsonl") for name in ("first", "second"))
    assert [row["loss"] for row in one] == [row["loss"] for row in two]


def test_a_checkpoint_of_a_later_version_is_refused_in_one_line(tmp_path, model, told):
    path = training_config(tmp_path, model, "later", train={"steps": 2})
    assert told(path)[0] == 0
    folder = tmp_path / "out" / "later" / "checkpoints" / "step_000000002"
    state, manifest = (json.loads((folder / name).read_text()) for name in ("state.json", "manifest.json"))
    (folder / "state.json").write_text(json.dumps(state | {"schema_version": 99}))
    manifest["files"]["state.json"] = sha256_of(folder / "state.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    code, output = told(path)
    assert code == 1
    assert errors(output) == [
        f"error: {folder}: written by a later version (schema 99) (update AI Toolkit, or move the checkpoint "
        "away to start anew)"
    ]


def test_a_clock_that_jumps_disturbs_nothing(tmp_path, model, told, monkeypatch):
    times = iter(range(2_000_000_000, 0, -1_000_000))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    path = training_config(tmp_path, model, "clock", train={"disable_sampling": False, "steps": 4})
    assert told(path)[0] == 0
    folder = tmp_path / "out" / "clock"
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4]
    status = read_status(folder / "status.json")
    assert status.phase == "finished" and status.speed > 0
    assert len(list((folder / "samples").iterdir())) == 2 * 3


def test_a_run_that_was_killed_says_so_when_it_starts_again(tmp_path, model, told):
    path = training_config(tmp_path, model, "killed", train={"steps": 2})
    assert told(path)[0] == 0
    status = tmp_path / "out" / "killed" / "status.json"
    content = json.loads(status.read_text())
    status.write_text(json.dumps(content | {"phase": "training", "step": 1, "exit": None}))
    output = told(path)[1]
    assert "note: attempt 1 was killed at step 1" in output
    assert "was killed" not in told(path)[1], "it is told once"


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_with_the_last_checkpoint_valid(tmp_path, model):
    path = training_config(tmp_path, model, "twice", train={"steps": 100_000}, save={"save_every": 5})
    folder = tmp_path / "out" / "twice"
    process = start_job(tmp_path, path)
    wait_until(lambda: len(list_checkpoints(folder / "checkpoints")) == 2, process)
    process.send_signal(signal.SIGSTOP)  # so that it cannot end before the second one comes
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (3, 130) and "Traceback" not in output, output
    assert newest(folder).startswith("step_")


def test_a_kill_between_the_two_halves_of_a_save_costs_neither(tmp_path, model, told, monkeypatch):
    """Once the state of a step is there, its model must be: a resumed run would not write it again."""
    path = training_config(tmp_path, model, "halves", save={"save_every": 2}, train={"steps": 7})
    folder, replace = tmp_path / "out" / "halves", atomic.replace

    def interrupt(source: Path, target: Path) -> None:
        if Path(target).name == "halves_000000004.safetensors":
            for _ in range(20):  # time for a state that was handed over before
                time.sleep(0.05 * (not (folder / "checkpoints" / "step_000000004").exists()))
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "replace", interrupt)
        assert told(path)[0] == 130
    (folder / ".halves_000000004.safetensors.0123456789ab.part").write_bytes(b"half")
    code, output = told(path)
    assert code == 0 and "resuming from step" in output
    names = [path.name for path in folder.iterdir() if "halves" in path.name]
    numbered = [f"halves_{step:09d}.safetensors" for step in (2, 4, 6)]
    assert sorted(names) == ["halves.safetensors", *numbered]


def test_a_damaged_record_of_what_is_left_out_is_told(tmp_path, model, told):
    path = training_config(tmp_path, model, "record", train={"steps": 2})
    record = tmp_path / "out" / "record" / "checkpoints" / "left_out.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"schema_version": 1, "lay')
    code, output = told(path)
    assert code == 0 and f"note: {record} is damaged: what it said to pass over is trained on again" in output


def test_fewer_steps_than_were_trained_are_told_and_shown_as_done(tmp_path, model, told):
    assert told(training_config(tmp_path, model, "long", train={"steps": 5}))[0] == 0
    folder = tmp_path / "out" / "long"
    before = weights(folder)
    code, output = told(training_config(tmp_path, model, "long", train={"steps": 2}))
    assert code == 0 and "all 2 steps" not in output
    assert (
        "note: 5 steps were trained already, train.steps asks for 2: nothing is trained, the model is that "
        "of step 5; raise train.steps to go on, or take another name to begin anew"
    ) in output
    assert "long: 100% 5/5" in output and "250%" not in output
    status = read_status(folder / "status.json")
    assert (status.phase, status.step, status.total_steps) == ("finished", 5, 5)
    assert all(torch.equal(before[name], weight) for name, weight in weights(folder).items())
