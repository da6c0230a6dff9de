"""A run that another training of its name would go on from: refused, and as it was afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import run
from jobs.preflight import check_files
from testing.job_helpers import training_config
from testing.tiny_models import build_tiny_sd15
from toolkit.runs.standing import headline, look
from toolkit.training.checkpoints import sha256_of


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture(scope="module")
def other_model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "other", seed=1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def refused(tmp_path: Path, capsys: Any, model: Path, changes: dict[str, Any]) -> list[str]:
    """Finish a run, start it again changed; what it is refused for, with the folder as it was."""
    assert run.main([str(training_config(tmp_path, model, "c", train={"steps": 2}))]) == 0
    return refused_again(tmp_path, capsys, model, changes)


def refused_again(tmp_path: Path, capsys: Any, model: Path, changes: dict[str, Any]) -> list[str]:
    folder = tmp_path / "out" / "c"
    kept = [folder / name for name in ("config.yaml", "status.json", "report.html", "c.safetensors")]
    before = [path.read_bytes() for path in kept]
    told = headline(look(folder))
    capsys.readouterr()
    changes = changes | {"train": {"steps": 4} | changes.get("train", {})}
    path = training_config(tmp_path, model, "c", **changes)
    (report,) = check_files([str(path)], None)
    checked = [str(problem.message) for problem in report.all_problems]
    assert run.main([str(path)]) == 1
    assert [path.read_bytes() for path in kept] == before
    assert headline(look(folder)) == told == "c: finished, step 2 of 2 (100 %)"
    assert not (folder / "run.lock").exists()
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert lines and all(f"{folder / 'checkpoints' / 'step_000000002'}: " in line for line in lines)
    assert lines[0].split(": ", 1)[1] in (folder / "log.txt").read_text(), "the log tells of the refusal"
    said = [line.split("step_000000002: ")[1].partition(" (use another name")[0] for line in lines]
    assert all(message in said for message in checked), "a check says the same, as far as it knows"
    return said


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"train": {"optimizer": "lion"}}, ["was made with optimizer adamw, this config has lion"]),
        ({"network": {"linear": 8}}, ["was made with network.linear 4, this config has 8"]),
        (
            {"network": {"type": "dora", "linear": 8}},
            [
                "was made with network.linear 4, this config has 8",
                "was made with network.type lora, this config has dora",
            ],
        ),
        (
            {"network": {"type": "locon"}},
            ["was made with network.conv null, this config has 4"],
        ),
        (
            {"network": {"type": "lokr", "lokr_full_rank": True}},
            [
                "was made with network.type lora, this config has lokr",
                "was made with network.lokr_full_rank false, this config has true",
            ],
        ),
        (
            {"train": {"train_text_encoder": True}},
            ["was made with train.train_text_encoder false, this config has true"],
        ),
        (
            {"network": None},
            ["was made by training a network (LoRA), this config trains the whole model"],
        ),
        (
            {"network": None, "embedding": {"tokens": 2, "trigger": "zrb"}},
            ["was made by training a network (LoRA), this config trains an embedding"],
        ),
    ],
)  # fmt: skip
def test_another_training_is_refused_before_any_model_loads(tmp_path, capsys, model, changes, lines):
    assert refused(tmp_path, capsys, model, changes) == lines
    log = (tmp_path / "out" / "c" / "log.txt").read_text()
    assert log.count("Loading model") == 1


def test_what_only_a_loaded_model_tells_is_refused_and_leaves_the_run_as_it_was(
    tmp_path, capsys, model, other_model
):
    (line,) = refused(tmp_path, capsys, model, {"model": {"name_or_path": str(other_model)}})
    assert line.startswith("was made on another base model (hash ")
    chosen = {"network": {"network_kwargs": {"only_if_contains": ["attn1"]}}}
    (line,) = refused_again(tmp_path, capsys, model, chosen)
    assert line.startswith("does not fit this config: it alone has ") and " weights such as unet." in line
    (line,) = refused_again(tmp_path, capsys, model, {"model": {"prediction_type": "v_prediction"}})
    assert line == "was made with objective epsilon, this config has v_prediction"


def test_the_rank_of_a_checkpoint_that_does_not_tell_it_is_seen_from_its_weights(tmp_path, capsys, model):
    assert run.main([str(training_config(tmp_path, model, "c", train={"steps": 2}))]) == 0
    folder = tmp_path / "out" / "c" / "checkpoints" / "step_000000002"
    state, manifest = (json.loads((folder / name).read_text()) for name in ("state.json", "manifest.json"))
    nature = state["identity"]["nature"]
    state["identity"]["nature"] = {key: value for key, value in nature.items() if "." not in key}
    (folder / "state.json").write_text(json.dumps(state))
    manifest["files"]["state.json"] = sha256_of(folder / "state.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    line = "was made with network.linear 4, this config has 8"
    assert refused_again(tmp_path, capsys, model, {"network": {"linear": 8}}) == [line]
    assert run.main([str(training_config(tmp_path, model, "c", train={"steps": 3}))]) == 0


def test_a_run_that_was_killed_is_still_told_as_killed(tmp_path, capsys, model):
    path = training_config(tmp_path, model, "c", train={"steps": 2})
    assert run.main([str(path)]) == 0
    status = tmp_path / "out" / "c" / "status.json"
    text = status.read_text().replace('"phase": "finished"', '"phase": "training"')
    status.write_text(yaml.safe_dump(yaml.safe_load(text), default_flow_style=True, width=10_000))
    before = status.read_bytes()
    assert run.main([str(training_config(tmp_path, model, "c", network={"linear": 8}))]) == 1
    assert status.read_bytes() == before


def test_a_check_tells_it_too(tmp_path, model):
    assert run.main([str(training_config(tmp_path, model, "c", train={"steps": 2}))]) == 0
    path = str(training_config(tmp_path, model, "c", network={"linear": 8}))
    (report,) = check_files([path], None)
    (problem,) = report.all_problems
    assert problem.code == "run.foreign_checkpoint"
    assert problem.message == "was made with network.linear 4, this config has 8"
