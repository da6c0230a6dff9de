"""`job: eval`: a run folder that others can watch, with the report that the tool writes too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.base_job import run_job
from testing.config_helpers import problems_of
from testing.eval_helpers import unseen, write
from toolkit.config_modules.evaluation import EvalConfig
from toolkit.config_modules.loading import load_job
from toolkit.errors import JobStopped
from toolkit.evaluation.draws import TIMESTEP_TYPES
from toolkit.evaluation.report import Report
from toolkit.paths import ROOT
from toolkit.runs.commands import CommandBox
from toolkit.runs.status import StatusWriter
from tools import eval_dataset

NUM = 5


@pytest.fixture(scope="module")
def drawings(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "drawings", unseen(NUM))


def job_file(tmp_path: Path, drawings: Path, **changes: Any) -> Path:
    section = {"dataset_path": str(drawings), "samples_per_image": 2, "others": 1, "batch_size": 2} | changes
    process = {"type": "eval_dataset", "training_folder": str(tmp_path / "out"), "device": "cpu",
               "model": {"name_or_path": "tiny-sd"}, "eval": section}  # fmt: skip
    path = tmp_path / "job.yml"
    path.write_text(yaml.safe_dump({"job": "eval", "config": {"name": "measured", "process": [process]}}))
    return path


def read(folder: Path) -> Report:
    return Report.model_validate_json((folder / "measured_000000250.json").read_text(encoding="utf-8"))


def test_a_job_leaves_a_run_folder_with_the_tools_report(tmp_path, drawings):
    run_job(load_job(job_file(tmp_path, drawings, step=250)))
    folder = tmp_path / "out" / "measured"
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    assert (status["job"], status["phase"], status["exit"]["code"]) == ("eval", "finished", 0)
    assert (status["step"], status["total_steps"]) == (NUM, NUM)
    assert {"config.yaml", "log.txt", "measured_000000250.html"} <= {path.name for path in folder.iterdir()}
    assert "total examples: 5" in (folder / "log.txt").read_text(encoding="utf-8")
    assert not (folder / "run.lock").exists()
    options = ["--dataset-path", str(drawings), "--model", "tiny-sd", "--device", "cpu",
               "--samples-per-image", "2",
               "--others", "1", "--batch-size", "2", "--step", "250", "--job-name", "measured",
               "--out-dir", str(tmp_path / "tool")]  # fmt: skip
    assert eval_dataset.main(options) == 0
    assert read(folder).images == read(tmp_path / "tool").images
    assert read(folder).run.design == read(tmp_path / "tool").run.design


def test_only_measured_pictures_are_the_progress_of_a_job(tmp_path, drawings, monkeypatch):
    told = []
    write = StatusWriter.tick

    def tick(self, step=None, **changes: Any) -> None:
        write(self, step, **changes)
        told.append((step, self.status))

    monkeypatch.setattr(StatusWriter, "tick", tick)
    run_job(load_job(job_file(tmp_path, drawings, step=250)))
    verified = [(step, status) for step, status in told if "verified" in status.info]
    assert verified and [(s, x.step, x.total_steps, x.speed) for s, x in verified] == [
        (None, 0, None, None)
    ] * len(verified)
    assert [status.info for _, status in verified][-1] == f"pictures verified {NUM}/{NUM}"
    first = next(status for step, status in told if step is not None)
    assert (first.total_steps, first.eta_s) == (NUM, None)


def test_a_job_obeys_stop_and_goes_on(tmp_path, drawings, monkeypatch):
    file = job_file(tmp_path, drawings, step=250, batch_size=1)
    folder = tmp_path / "out" / "measured"
    from toolkit.evaluation import evaluate

    measured, measure = [], evaluate.measure

    def counting(*arguments: Any, **options: Any) -> Any:
        measured.append(1)
        if len(measured) == 2:
            CommandBox(folder / "commands").put("stop")
        return measure(*arguments, **options)

    monkeypatch.setattr(evaluate, "measure", counting)
    with pytest.raises(JobStopped, match="commands/stop|2 of 5 images"):
        run_job(load_job(file))
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    assert status["phase"] == "stopped"
    assert not list(folder.glob("*.html"))
    told, tick = [], StatusWriter.tick

    def counting_ticks(self, step=None, **changes: Any) -> None:
        told.extend([] if step is None else [step])
        tick(self, step, **changes)

    monkeypatch.setattr(StatusWriter, "tick", counting_ticks)
    run_job(load_job(file))
    assert told == list(range(2, NUM + 1)), "what was measured before is no speed of this attempt"
    assert len(measured) == NUM
    assert len(read(folder).images) == NUM


EVAL = """\
job: eval
config:
  name: measured
  process:
    - type: eval_dataset
      training_folder: out
      model: {name_or_path: tiny-sd}
      eval: {dataset_path: DATA}
"""


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("samples_per_image: 0", "samples_per_image: must be at least 1"),
        ("samples: 2", "did you mean"),
        ("against_base: true", "eval.against_base: needs a LoRA (eval.lora) to compare with the base model"),
        ("lora: none.safetensors", "file none.safetensors does not exist"),
        ("t_range: [0.5, 0.1]", "eval.t_range: must rise, not [0.5, 0.1]"),
        ("timestep_type: sigmoit", "did you mean 'sigmoid'?"),
        ("target_q: 0.1, caption_ablation_compare: false", "eval.target_q: needs caption_ablation_compare"),
        ("target_se: 0.1, caption_ablation_compare: false", "eval.target_se: needs caption_ablation_compare"),
        ("caption_ext: ''", "must be the end of a file's name"),
        ("fixed_noise_std: 2", "fixed_noise_std: must be at most 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(tmp_path, monkeypatch, drawings, more, named):
    monkeypatch.chdir(tmp_path)
    (problem,) = problems_of(EVAL.replace("DATA", f"{drawings}, {more}"))
    assert named in str(problem)
    assert "{" not in str(problem)
    assert problem.line == 8


def test_a_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (problem,) = problems_of(EVAL.replace("DATA", "no_such_folder"))
    assert (problem.code, problem.line) == ("config.dataset_folder", 8)


def test_the_section_has_the_tools_options_and_defaults():
    parser = eval_dataset.build_parser()
    options = {action.dest: action.default for action in parser._actions}
    elsewhere = {
        "help",
        "model",
        "model_config_file",
        "arch",
        "device",
        "dtype",
        "out_dir",
        "job_name",
        "schema",
        "apply_inference_lora",
    }
    fields = EvalConfig.model_fields
    assert set(fields) == set(options) - elsewhere
    differing = {name for name, field in fields.items() if field.get_default() != options[name]}
    assert differing == {"dataset_path", "html"}
    assert {*EvalConfig.model_json_schema()["properties"]["timestep_type"]["enum"]} == {*TIMESTEP_TYPES}


def test_the_example_uses_every_key():
    text = (ROOT / "config" / "examples" / "eval_dataset.yml").read_text(encoding="utf-8")
    assert [name for name in EvalConfig.model_fields if f"{name}:" not in text] == []
