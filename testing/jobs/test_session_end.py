"""How a run folder's owner begins and ends: commands, the webhook, what is said of a run that was killed."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.session import Session
from testing.toolkit.runs.test_lineage import checkpoint
from testing.toolkit.runs.test_standing import dead_process, identity
from testing.toolkit.runs.test_webhook import server
from toolkit.config_modules.loading import LoadedJob, load_job
from toolkit.config_modules.notify import NotifyConfig
from toolkit.config_modules.process import RunProcess
from toolkit.errors import ConfigError, JobStopped, RunError
from toolkit.runs import atomic
from toolkit.runs.commands import STARTED, CommandBox
from toolkit.runs.status import Status, read_status


def job_file(tmp_path: Path, **notify: Any) -> Path:
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    process = {
        "type": "sd_trainer", "training_folder": str(tmp_path / "out"), "model": {"name_or_path": "tiny-sd"},
        "datasets": [{"folder_path": str(data)}], "notify": notify,
        "train": {"batch_size": 2, "gradient_checkpointing": False},
    }  # fmt: skip
    path = tmp_path / "foo.yml"
    path.write_text(yaml.safe_dump({"job": "train", "config": {"name": "foo", "process": [process]}}))
    return path


def open_session(loaded: LoadedJob, nature: dict[str, Any] | None = None) -> Session:
    (process,) = loaded.config.process
    assert isinstance(process, RunProcess)
    root = Path(process.training_folder)
    return Session(loaded, root=root, name="foo", total_steps=9, notify=process.notify, nature=nature)


@pytest.mark.parametrize(
    ("error", "state", "line"),
    [
        (None, "finished", None),
        (JobStopped("commands/stop"), "stopped", "commands/stop"),
        (RunError("the loss is not finite"), "failed", "the loss is not finite"),
        (ZeroDivisionError("a bug"), "failed", "ZeroDivisionError: a bug"),
    ],
)
def test_the_webhook_hears_how_a_run_ended(tmp_path, monkeypatch, error, state, line):
    with server() as (url, taken):
        monkeypatch.setenv("HOOK", url)
        loaded = load_job(job_file(tmp_path, url="${HOOK}"))

        def run() -> None:
            with open_session(loaded) as session:
                session.status.tick(4)
                if error is not None:
                    raise error

        if error is None:
            run()
        else:
            with pytest.raises(type(error)):
                run()
    (request,) = taken
    told = request["json"]
    assert (told["name"], told["state"], told["step"], told["total_steps"]) == ("foo", state, 4, 9)
    assert told["error"] == line
    assert told["folder"] == str(tmp_path / "out" / "foo")
    assert read_status(tmp_path / "out" / "foo" / "status.json").phase == state
    texts = [path.read_text() for path in (tmp_path / "out" / "foo").iterdir() if path.is_file()]
    assert not any("s3cret" in text for text in texts)
    assert any("${HOOK}" in text for text in texts)


def test_only_the_endings_asked_for_are_told(tmp_path):
    with server() as (url, taken):
        with open_session(load_job(job_file(tmp_path, url=url, when=["failed"]))):
            pass
        with pytest.raises(RunError), open_session(load_job(job_file(tmp_path, url=url, when=["failed"]))):
            raise RunError("x")
    assert [request["json"]["state"] for request in taken] == ["failed"]


def test_a_refusal_for_the_run_that_was_there_before_is_told_too(tmp_path):
    checkpoint(tmp_path / "out" / "foo" / "checkpoints", 5, {"optimizer": "adamw"})
    status = tmp_path / "out" / "foo" / "status.json"
    status.write_text("{}")
    with server() as (url, taken):
        loaded = load_job(job_file(tmp_path, url=url))
        with pytest.raises(RunError), open_session(loaded, nature={"optimizer": "lion"}):
            pytest.fail("the run began")
    (told,) = [request["json"] for request in taken]
    assert (told["name"], told["state"], told["step"], told["total_steps"]) == ("foo", "failed", 0, 9)
    assert "was made with optimizer adamw, this config has lion" in told["error"]
    assert status.read_text() == "{}"


def test_a_webhook_that_fails_is_a_note(tmp_path, capsys):
    with server(500) as (url, _), open_session(load_job(job_file(tmp_path, url=url))):
        pass
    out = capsys.readouterr().out
    assert "note: the webhook of notify.url was not told: 127.0.0.1 answered 500" in out
    assert "s3cret" not in out
    assert read_status(tmp_path / "out" / "foo" / "status.json").phase == "finished"
    assert "was not told" in (tmp_path / "out" / "foo" / "log.txt").read_text()


def test_nobody_is_told_without_a_section(tmp_path):
    with open_session(load_job(job_file(tmp_path))):
        pass


def test_a_command_given_while_the_run_starts_is_obeyed(tmp_path):
    box = CommandBox(tmp_path / "out" / "foo" / "commands")
    box.put("save")
    box.put("sample")
    with open_session(load_job(job_file(tmp_path))) as session:
        assert session.commands() == {"save", "sample"}
    box.put("stop")
    with open_session(load_job(job_file(tmp_path))) as session:
        assert session.stop_requested() and not session.commands() - {"stop"}


def test_a_command_of_an_earlier_attempt_is_not_obeyed(tmp_path, monkeypatch):
    box = CommandBox(tmp_path / "out" / "foo" / "commands")
    for name in ("save", "stop"):
        box.put(name)
        os.utime(box.folder / name, (time.time() - 3600,) * 2)
    with open_session(load_job(job_file(tmp_path))) as session:
        assert not session.stop_requested() and session.commands() == set()
        box.put("sample")  # too late: nobody looks any more
    assert box.poll() == set()
    with open_session(load_job(job_file(tmp_path))) as session:
        assert session.commands() == set()


def test_an_attempt_may_have_begun_before_its_process(tmp_path, monkeypatch):
    box = CommandBox(tmp_path / "out" / "foo" / "commands")
    monkeypatch.setenv(STARTED, f"{time.time() - 3000}")
    for name, age in (("save", 2000), ("sample", 4000)):
        box.put(name)
        os.utime(box.folder / name, (time.time() - age,) * 2)
    with open_session(load_job(job_file(tmp_path))) as session:
        assert session.commands() == {"save"}


@pytest.mark.parametrize("url", ["ftp://host/s3cret", "host/s3cret", "http:///s3cret", "http://[::1/s3cret"])
def test_addresses_that_are_none_are_refused_without_repeating_them(tmp_path, url):
    with pytest.raises(ConfigError, match="must begin with http:// or https:// and name a host") as caught:
        load_job(job_file(tmp_path, url=url))
    (problem,) = caught.value.problems
    assert (problem.key, problem.value) == ("notify.url", None)
    assert "s3cret" not in str(problem)


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'finished', 'stopped' or 'failed'"):
        load_job(job_file(tmp_path, when=["done"]))
    assert NotifyConfig().url is None


def test_the_next_start_tells_that_the_last_was_killed(tmp_path, capsys):
    loaded = load_job(job_file(tmp_path))
    dead = dead_process()
    with open_session(loaded) as session:
        folder = session.folder.path
    killed = replace(
        Status(job="train", name="foo", **identity(dead)),
        phase="training",
        step=812,
        attempt=1,
        total_steps=900,
    )
    atomic.write_json(folder / "status.json", asdict(killed))
    (folder / "run.lock").write_text(json.dumps(dead | {"token": "a", "since": "b"}))
    capsys.readouterr()
    with open_session(loaded):
        pass
    out = capsys.readouterr().out
    assert "note: attempt 1 was killed at step 812 while training" in out
    assert "probably the system ran out of memory (exit code 137)" in out
    assert "set train.gradient_checkpointing: true" in out
    with open_session(loaded):
        pass
    assert "was killed" not in capsys.readouterr().out
