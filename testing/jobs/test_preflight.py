"""Checking jobs: what a user reads and a program gets, before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import run
from jobs import preflight_process
from jobs.preflight import check_files, check_job, require_ready
from testing.job_helpers import make_dataset, merged, training_config
from toolkit.config_modules.loading import load_job
from toolkit.data import image_files, scan
from toolkit.errors import EXIT_OK, EXIT_USAGE, UserError
from toolkit.preflight import disk, hub_access
from toolkit.preflight.hub_access import HubAnswer
from toolkit.preflight.report import JobReport, as_json

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(**changes): a job on tiny-sd and six pictures, changed as asked."""
    return lambda **changes: training_config(tmp_path, Path("tiny-sd"), "run", **changes)


def check(path: Path, **options: Any) -> JobReport:
    (report,) = check_files([str(path)], None, **options)
    return report


def codes(report: JobReport) -> list[str]:
    return [problem.code for problem in report.all_problems]


def settle(folder: Path) -> None:
    """Make the files old enough to be remembered."""
    before = time.time() - 60
    for path in folder.iterdir():
        os.utime(path, (before, before))


def test_a_good_job_is_described(write):
    report = check(write(), full=True)
    assert report.all_problems == []
    (process,) = report.processes
    assert (process.steps, process.batches_per_epoch) == (4, 4)
    sizes = [(row.width, row.height, row.items) for row in process.buckets]
    assert sizes == [(32, 32, 3), (48, 16, 2), (16, 48, 1)]
    assert [dataset.pictures for dataset in process.datasets] == [6]
    assert process.captions.captions == 6
    assert [model.where for model in process.models] == ["local"]
    assert all(need.num_bytes for need in process.disk)
    lines = report.lines()
    assert lines[0].startswith("OK: ")
    assert any("an epoch is 4 batches; 4 steps are 1.00 epochs" in line for line in lines)


def test_nothing_is_written_by_a_check(write, tmp_path):
    path = write()
    before = sorted(tmp_path.rglob("*"))
    check(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_headers_are_read_first_and_pictures_decoded_on_demand(write, tmp_path):
    path = write()
    picture = tmp_path / "data" / "disk0.png"
    picture.write_bytes(picture.read_bytes()[:-40])
    quick, full = check(path), check(path, full=True)
    assert quick.all_problems == []
    assert any("only the headers of 6 pictures were read; --full" in note for note in quick.all_notes)
    (problem,) = full.all_problems
    assert (problem.code, problem.file) == ("data.unreadable_image", str(picture))
    assert "cannot be decoded" in problem.message


def test_a_repeated_check_only_stats(write, tmp_path, monkeypatch):
    path = write()
    settle(tmp_path / "data")
    first = check(path, full=True)

    def refuse(path: Path) -> Any:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(image_files, "_read_bytes", refuse)
    monkeypatch.setattr(scan, "inspect_header", refuse)
    for options in ({"full": True}, {}):
        again = check(path, **options)
        assert again.all_problems == []
        assert again.processes[0].buckets == first.processes[0].buckets
        assert sum(dataset.undecoded for dataset in again.processes[0].datasets) == 0


def test_a_quick_check_forgets_nothing_that_was_verified(write, tmp_path, monkeypatch):
    path = write()
    settle(tmp_path / "data")
    check(path, full=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "data" / "later.png")
    check(path)
    decoded: list[Path] = []
    monkeypatch.setattr(
        scan, "inspect_image", lambda path: decoded.append(path) or image_files.inspect_image(path)
    )
    check(path, full=True)
    assert [each.name for each in decoded] == ["later.png"]


def test_everything_wrong_is_said_at_once(write, tmp_path):
    path = write(train={"stepz": 3}, datasets=[{"folder_path": str(tmp_path / "data"), "resolution": 32}])
    (tmp_path / "data" / "disk1.png").write_bytes(b"")
    (tmp_path / "data" / "disk2.txt").write_bytes(b"\xff\xfea")
    report = check(path)
    assert codes(report) == ["config.unknown_key", "data.unreadable_image", "data.caption_file"]
    typo = report.all_problems[0]
    assert (typo.key, typo.value, typo.remedy) == ("train.stepz", 3, "did you mean 'steps'?")


@pytest.mark.parametrize("name", ["list.json", "list.JSONL"])
def test_pictures_of_a_list_are_looked_at_in_a_broken_config_too(write, tmp_path, name):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    entry = json.dumps({"path": str(bad), "caption": "x"})
    (tmp_path / name).write_text(entry if name.endswith("L") else f"[{entry}]")
    path = write(train={"stepz": 3}, datasets=[{"folder_path": str(tmp_path / name), "resolution": 32}])
    assert codes(check(path)) == ["config.unknown_key", "data.unreadable_image"]


def test_captions_beyond_the_encoders_windows_are_named_with_their_pictures(write, tmp_path):
    path = write(sample={"prompts": ["a box " * 60]}, train={"disable_sampling": False})
    (tmp_path / "data" / "disk3.txt").write_text("a red circle " * 40)
    report = check(path)
    caption, prompt = report.all_problems
    assert (caption.code, caption.file) == ("model.prompt_too_long", str(tmp_path / "data" / "disk3.png"))
    assert caption.message.endswith("... ' has 120 tokens, at most 66 can be read") or (
        "has 120 tokens, at most 66 can be read" in caption.message
    )
    assert (prompt.key, prompt.line, prompt.file) == ("sample.prompts", prompt.line, str(path))
    assert prompt.line is not None
    assert "has 120 tokens" in prompt.message


def test_captions_of_several_windows_are_a_note(write, tmp_path):
    path = write()
    (tmp_path / "data" / "disk3.txt").write_text("a red circle " * 10)
    report = check(path)
    assert report.all_problems == []
    assert any("1 caption longer than a window of 22 tokens" in note for note in report.all_notes)
    assert report.processes[0].captions.longest == 30
    assert report.processes[0].captions.longest_file.endswith("disk3.png")


def test_missing_captions_are_counted(write, tmp_path):
    path = write()
    (tmp_path / "data" / "disk3.txt").unlink()
    (tmp_path / "data" / "disk4.txt").write_text(" \n")
    report = check(path)
    assert report.processes[0].datasets[0].uncaptioned == 2
    assert any("1 of 6 pictures have no caption" in note for note in report.all_notes)
    assert any("1 of 6 pictures have an empty caption" in note for note in report.all_notes)


def test_small_pictures_are_noticed(write, tmp_path):
    report = check(write(datasets=[{"folder_path": str(tmp_path / "data"), "resolution": 256}]))
    assert any("6 of 6 pictures are smaller than 256 x 256 px" in note for note in report.all_notes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "is not a diffusers folder"),
        (lambda folder: shutil.rmtree(folder / "unet"), "no weights in"),
        (
            lambda folder: (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'),
            "holds a FluxPipeline, not Stable Diffusion 1.x",
        ),
    ],
)
def test_a_model_folder_is_looked_at(write, tmp_path, damage, message):
    folder = tmp_path / "model"
    shutil.copytree(Path(preflight_process.__file__).parents[1] / "toolkit" / "assets" / "tiny_sd", folder)
    damage(folder)
    report = check(write(model={"name_or_path": str(folder), "arch": "sd15"}))
    problem = report.all_problems[0]
    assert (problem.code, problem.key) == ("model.load", "model.name_or_path")
    assert message in problem.message
    assert problem.line is not None


def test_a_model_that_is_nowhere(write):
    (problem,) = check(write(model={"name_or_path": "no_such_model"})).all_problems
    assert problem.code == "model.load"
    assert "'no_such_model': no such file or folder, and not a hub id" in problem.message


def hub_says(monkeypatch, **answer: Any) -> None:
    monkeypatch.setattr(hub_access, "ask_hub", lambda name, **options: HubAnswer(name, **answer))


def test_a_model_on_the_hub_needs_room_for_its_download(write, monkeypatch):
    hub_says(monkeypatch, where="hub", download_bytes=5 * 10**9)
    report = check(write(model={"name_or_path": "org/sd"}))
    assert report.all_problems == []
    assert any("org/sd is on the hub, 5.0 GB to be downloaded" in line for line in report.lines())
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 4 * 10**9)
    (problem,) = check(write(model={"name_or_path": "org/sd"})).all_problems
    assert problem.code == "run.disk_space"
    assert "download of org/sd 5.0 GB" in problem.message


def test_a_hub_that_does_not_answer_is_a_note_until_the_job_starts(write):
    path = write(model={"name_or_path": "org/sd"})  # the tests are offline
    report = check(path)
    assert report.all_problems == []
    assert any("HF_HUB_OFFLINE forbids a download; a run will need it" in note for note in report.all_notes)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids a download") as caught:
        require_ready([load_job(path)])
    assert caught.value.problems[0].code == "model.hub"


def test_a_later_jobs_model_may_still_be_made(write, tmp_path):
    first = load_job(write())
    second = load_job(training_config(tmp_path, tmp_path / "made_by_the_first", "later"))
    require_ready([first, second])
    with pytest.raises(UserError, match="made_by_the_first"):
        require_ready([second])


def test_a_disk_that_is_too_small(write, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1000)
    problems = check(write()).all_problems
    assert [problem.code for problem in problems] == ["run.disk_space"]


def test_a_folder_that_cannot_be_written(write, tmp_path):
    (tmp_path / "out").write_text("a file")
    (problem,) = check(write()).all_problems
    assert (problem.code, problem.key) == ("run.folder", "training_folder")
    assert "Not a directory" in problem.message


def test_the_json_is_stable(write, tmp_path):
    path = write(train={"stepz": 3})
    told = json.loads(json.dumps(as_json([check(path), check(write())], full=False)))
    assert (told["schema_version"], told["ok"], told["full"]) == (1, False, False)
    bad, good = told["jobs"]
    assert (bad["ok"], bad["processes"], good["ok"]) == (False, [], True)
    assert set(bad["problems"][0]) == {"code", "message", "file", "line", "key", "remedy", "value"}
    (process,) = good["processes"]
    assert set(process) == {
        "type", "folder", "steps", "batches_per_epoch", "datasets", "buckets", "captions", "models", "disk",
        "estimate",
    }  # fmt: skip
    assert process["datasets"][0]["folder"] == str(tmp_path / "data")
    assert process["datasets"][0]["buckets"][0] == {
        "width": 32, "height": 32, "pictures": 3, "items": 3, "batches": 2, "last": 1,
    }  # fmt: skip


def test_the_command_line_prints_one_form_or_the_other(write, capsys, tmp_path):
    path = str(write())
    assert run.main(["--check", path]) == EXIT_OK
    assert capsys.readouterr().out.startswith("OK: ")
    assert run.main(["--check", "--json", path]) == EXIT_OK
    assert json.loads(capsys.readouterr().out)["ok"] is True
    (tmp_path / "data" / "disk0.png").write_bytes(b"x")
    assert run.main(["--check", "--json", "--full", path]) == EXIT_USAGE
    assert json.loads(capsys.readouterr().out)["jobs"][0]["problems"][0]["code"] == "data.unreadable_image"
    assert run.main(["--check", path]) == EXIT_USAGE
    out, err = capsys.readouterr()
    assert out.startswith("NOT OK: ")
    assert err.startswith(f"error: {tmp_path / 'data' / 'disk0.png'}: ")


def test_a_run_is_refused_before_it_leaves_anything(write, capsys, tmp_path):
    path = str(write())
    (tmp_path / "data" / "disk0.png").write_bytes(b"x")
    assert run.main([path]) == EXIT_USAGE
    out, err = capsys.readouterr()
    assert (out, "disk0.png: not a PNG, JPEG or WebP picture" in err) == ("", True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "vae", "network": None, "train": None, "sample": None, "datasets": None},
        {"type": "concept_slider", "slider": {"positive_prompt": "red " * 80, "negative_prompt": "blue",
                                              "target_class": "a disk"}},
        {"type": "slider", "datasets": None, "slider": {"targets": [
            {"target_class": "a disk", "positive": "red " * 80, "negative": "blue"}]}},
    ],
    ids=lambda changes: changes["type"],
)  # fmt: skip
def test_every_kind_of_training_is_checked(write, tmp_path, changes):
    path = write()
    job = yaml.safe_load(path.read_text())
    (process,) = job["config"]["process"]
    if changes["type"] == "vae":
        data = [{"folder_path": str(tmp_path / "data"), "resolution": 32}]
        process = {key: process[key] for key in ("training_folder", "model")} | {
            "datasets": data,
            "type": "vae",
        }
        job["job"] = "train"
    else:
        process = merged(process, changes)
        process["train"].pop("timestep_type", None)
    job["config"]["process"] = [process]
    path.write_text(yaml.safe_dump(job))
    report = check(path)
    long = [problem for problem in report.all_problems if problem.code == "model.prompt_too_long"]
    assert codes(report) == [problem.code for problem in long]
    assert len(long) == (0 if changes["type"] == "vae" else 1)
    assert len(report.processes) == 1


def test_pictures_to_draw_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "draw.yml"
    process = {
        "type": "to_folder", "output_folder": "pictures", "model": {"name_or_path": "tiny-sd"},
        "generate": {"prompts": ["a fox", "a fox " * 50]},
    }  # fmt: skip
    path.write_text(yaml.safe_dump({"job": "generate", "config": {"name": "x", "process": [process]}}))
    (problem,) = check_job(load_job(path)).all_problems
    assert (problem.code, problem.key) == ("model.prompt_too_long", "generate.prompts")


def test_progress_is_told(write, tmp_path):
    make_dataset(tmp_path / "data")
    seen: list[tuple[str, int, int]] = []

    def progress(what: str) -> Callable[[int, int], None]:
        return lambda done, total: seen.append((what, done, total))

    check(write(), full=True, progress=progress)
    assert seen == [("pictures", done, 6) for done in range(1, 7)]


@pytest.mark.parametrize("key", ["vae_path", "te_name_or_path"])
def test_parts_from_elsewhere_are_looked_at(write, tmp_path, key):
    (tmp_path / "nothing").mkdir()
    (problem,) = check(write(model={key: str(tmp_path / "nothing")})).all_problems
    assert (problem.code, problem.key) == ("model.load", f"model.{key}")
    assert "no weights in" in problem.message
    whole = Path(preflight_process.__file__).parents[1] / "toolkit" / "assets" / "tiny_sd"
    assert check(write(model={key: str(whole)})).all_problems == []


def test_the_json_holds_no_number_that_is_none(write, capsys):
    assert run.main(["--check", "--json", str(write(train={"lr": float("nan")}))]) == EXIT_USAGE

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    (problem,) = json.loads(capsys.readouterr().out, parse_constant=refuse)["jobs"][0]["problems"]
    assert (problem["key"], problem["value"]) == ("train.lr", None)


def test_a_file_in_the_place_of_a_folder_is_told_once(write, tmp_path):
    (tmp_path / "picture.png").write_bytes(b"x")
    report = check(write(datasets=[{"folder_path": str(tmp_path / "picture.png"), "resolution": 32}]))
    (problem,) = report.all_problems
    assert problem.key == "datasets[0].folder_path"


def test_a_run_that_goes_on_needs_no_room_for_latents_again(write, tmp_path):
    path = write(datasets=[{"folder_path": str(tmp_path / "data"), "cache_latents_to_disk": True}])

    def missing() -> int:
        (need,) = [need for need in check(path).processes[0].disk if need.what.startswith("latents")]
        return need.more

    assert missing() > 0
    (tmp_path / "out" / "run" / "checkpoints" / "step_000000002").mkdir(parents=True)
    assert missing() == 0
