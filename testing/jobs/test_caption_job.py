"""`job: caption` and tools.caption_dataset with a tiny model on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from jobs.base_job import run_job
from jobs.preflight import check_files
from testing.caption_models import save_blip
from testing.config_helpers import problems_of
from toolkit.config_modules.caption import PICTURE_EXTENSIONS, CaptionConfig
from toolkit.config_modules.loading import load_job
from toolkit.data.image_files import IMAGE_SUFFIXES
from toolkit.paths import ROOT
from tools import caption_dataset


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_blip(tmp_path_factory.mktemp("model") / "blip")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        Image.effect_noise((40, 40 + index), 50).convert("RGB").save(folder / f"{index}.png")
    (folder / "1.txt").write_text("by hand", encoding="utf-8")
    return folder


def job_file(tmp_path: Path, photos: Path, model: Path, **changes: Any) -> Path:
    section = {"dataset_path": str(photos), "model": str(model), "max_new_tokens": 8} | changes
    process = {
        "type": "caption_dataset",
        "training_folder": str(tmp_path / "out"),
        "device": "cpu",
        "caption": section,
    }
    path = tmp_path / "job.yml"
    path.write_text(yaml.safe_dump({"job": "caption", "config": {"name": "named", "process": [process]}}))
    return path


def captions(photos: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in photos.glob("*.txt")}


def test_a_job_writes_what_the_tool_writes(tmp_path, photos, model, capsys):
    run_job(load_job(job_file(tmp_path, photos, model)))
    by_job = captions(photos)
    assert set(by_job) == {"0", "1", "2"} and by_job["1"] == "by hand" and by_job["0"].strip()
    folder = tmp_path / "out" / "named"
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    assert (status["job"], status["phase"], status["step"], status["total_steps"]) == (
        "caption",
        "finished",
        2,
        2,
    )
    assert "2 pictures captioned, 1 left as they were" in (folder / "log.txt").read_text(encoding="utf-8")
    assert caption_dataset.main(["--undo", str(folder / "captions.jsonl")]) == 0
    assert captions(photos) == {"1": "by hand"}
    options = [
        "--dataset-path",
        str(photos),
        "--model",
        str(model),
        "--max-new-tokens",
        "8",
        "--device",
        "cpu",
    ]
    out = ["--out-dir", str(tmp_path / "tool")]
    assert caption_dataset.main([*options, *out, "--dry-run"]) == 0
    assert captions(photos) == {"1": "by hand"}
    assert caption_dataset.main([*options, *out]) == 0
    assert captions(photos) == by_job
    assert "2 pictures captioned, 1 had a caption" in capsys.readouterr().out


def test_the_check_looks_at_pictures_and_model(tmp_path, photos, model):
    (report,) = check_files([str(job_file(tmp_path, photos, model))], None)
    assert report.all_problems == []
    assert "2 pictures to caption, 1 with a caption that stays" in report.processes[0].notes
    assert report.summary is None or "caption_dataset, 1 dataset" in report.summary
    (photos / "0.png").write_bytes(b"no picture")
    (report,) = check_files([str(job_file(tmp_path, photos, tmp_path / "nothing"))], None)
    assert {problem.code for problem in report.all_problems} == {"model.load", "data.unreadable_image"}


CAPTION = """\
job: caption
config:
  name: named
  process:
    - type: caption_dataset
      training_folder: out
      caption: {model: a/b, dataset_path: DATA}
"""


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (", num_beams: 0", "num_beams: must be at least 1"),
        (", recaptions: true", "did you mean 'recaption'?"),
        (", caption_ext: ../x", "caption_ext"),
        (", caption_ext: png", "is that of pictures"),
        (", batch_size: 0", "batch_size: must be at least 1"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path, monkeypatch, photos, more, named):
    monkeypatch.chdir(tmp_path)
    (problem,) = problems_of(CAPTION.replace("DATA", f"{photos}{more}"))
    assert named in str(problem) and problem.line == 7


@pytest.mark.parametrize(
    ("data", "named"),
    [("nowhere", "folder nowhere does not exist"), ("list.json", "captions go into folders")],
)
def test_captions_go_into_folders_that_are_there(tmp_path, monkeypatch, data, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("{}", encoding="utf-8")
    (problem,) = problems_of(CAPTION.replace("DATA", data))
    assert named in str(problem) and problem.code == "config.dataset_folder"


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--dataset-path", "nowhere", "--model", "a/b"], 2, "no such folder: nowhere"),
        (["--dataset-path", ".", "--model", "a/b", "--num-beams", "0"], 2, "--num-beams: must be at least 1"),
        (["--undo", "nothing.jsonl"], 2, "no such file"),
    ],
)
def test_the_tools_mistakes_are_one_line(options, code, told, capsys):
    assert caption_dataset.main(options) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and told in lines[0]


def test_captions_take_no_pictures_name(photos, capsys):
    assert set(PICTURE_EXTENSIONS) == set(IMAGE_SUFFIXES)
    options = ["--dataset-path", str(photos), "--model", "a/b", "--recaption", "--caption-ext", "JPG"]
    assert caption_dataset.main(options) == 2
    assert "is that of pictures" in capsys.readouterr().err


def test_an_out_dir_that_is_a_file_is_told(photos, tmp_path, capsys):
    (tmp_path / "file").touch()
    options = ["--dataset-path", str(photos), "--model", "a/b", "--out-dir", str(tmp_path / "file")]
    assert caption_dataset.main(options) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_the_section_has_the_tools_options_and_defaults():
    parser = caption_dataset.build_parser()
    options = {action.dest: action.default for action in parser._actions}
    fields = CaptionConfig.model_fields
    assert set(fields) == set(options) - {"help", "device", "dtype", "out_dir", "undo"}
    differing = {name for name, field in fields.items() if field.get_default() != options[name]}
    assert differing == {"dataset_path", "model"}  # those that must be given
    text = (ROOT / "config" / "examples" / "caption_dataset.yml").read_text(encoding="utf-8")
    assert [name for name in fields if f"{name}:" not in text] == []
