"""The check says of validation what the run would say, in the same words."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.base_job import run_job
from jobs.preflight import check_files
from testing.job_helpers import make_dataset, training_config
from toolkit.config_modules.loading import load_job
from toolkit.errors import DatasetError
from toolkit.preflight.report import JobReport


def job(tmp_path: Path, **validation: Any) -> Path:
    return training_config(tmp_path, Path("tiny-sd"), "run", validation=validation)


def check(path: Path, **options: Any) -> JobReport:
    (report,) = check_files([str(path)], None, **options)
    return report


@pytest.mark.parametrize("full", [False, True])
def test_too_few_pictures_are_told_as_the_run_tells_it(tmp_path, full):
    path = job(tmp_path, fraction=0.2)  # of six pictures
    (problem,) = check(path, full=full).all_problems
    assert (problem.code, problem.key) == ("data.validation", "validation.fraction")
    assert problem.line is not None and "holds out 0; at least 2" in problem.message
    with pytest.raises(DatasetError) as error:
        run_job(load_job(path))
    assert error.value.problems[0].message == problem.message


def test_copies_count_once_where_pictures_are_compared(tmp_path):
    path = job(tmp_path, fraction=0.5)
    data = tmp_path / "data"
    pictures = sorted(data.glob("*.png"))
    for index, picture in enumerate(pictures[1:]):
        shutil.copyfile(pictures[0], picture.with_name(f"copy{index}.png"))
        picture.unlink()
    assert check(path).all_problems == []
    (problem,) = check(path, full=True).all_problems
    assert (
        problem.code == "data.validation" and "(1 where those that look alike count once)" in problem.message
    )


def test_few_pictures_are_a_note(tmp_path):
    notes = check(job(tmp_path, fraction=0.5)).processes[0].notes
    assert "validation: 3 pictures that look different tell little; bands will be wide" in notes


def test_the_files_of_a_held_out_folder_are_looked_at(tmp_path):
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    path = job(tmp_path, folder_path=str(held_out))
    assert [problem.code for problem in check(path).all_problems] == ["data.no_images"]
    for index in range(2):
        Image.effect_noise((32, 32), 90 + 20 * index).save(held_out / f"noise{index}.png")
    assert check(path, full=True).all_problems == []
    cut = held_out / "noise1.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    (problem,) = check(path, full=True).all_problems
    assert (problem.code, problem.file) == ("data.unreadable_image", str(cut))


def test_listed_pictures_are_looked_at(tmp_path):
    names = [str(tmp_path / f"noise{index}.png") for index in range(2)]
    for index, name in enumerate(names):
        Image.effect_noise((32, 32), 90 + 20 * index).save(name)
    path = job(tmp_path, items=[{"image_path": name, "prompt": "noise"} for name in names])
    assert check(path, full=True).all_problems == []
    cut = Path(names[1])
    cut.write_bytes(cut.read_bytes()[:-40])
    (problem,) = check(path, full=True).all_problems
    assert (problem.code, problem.file) == ("data.unreadable_image", str(cut))
    with pytest.raises(DatasetError) as error:
        run_job(load_job(path))
    assert error.value.problems[0].message == problem.message


def test_a_picture_listed_twice_is_told_at_its_key(tmp_path):
    picture = tmp_path / "data" / "disk0.png"
    path = job(tmp_path, items=[{"image_path": str(picture)}] * 2)
    assert picture.is_file()
    (problem,) = check(path).all_problems
    assert (problem.code, problem.key, problem.file) == ("data.list", "validation.items", str(path))
    assert problem.line is not None and "is listed twice" in problem.message


@pytest.mark.parametrize("full", [False, True])
def test_too_little_that_is_held_out_is_told_as_the_run_tells_it(tmp_path, full):
    held_out = tmp_path / "held_out"
    make_dataset(held_out, [(32, 32)])
    path = job(tmp_path, folder_path=str(held_out))
    if not full:  # what looks like a trained picture is only told by comparing
        Image.effect_noise((32, 32), 90).save(held_out / "disk0.png")
    (problem,) = check(path, full=full).all_problems
    with pytest.raises(DatasetError) as error:
        run_job(load_job(path))
    assert problem.code == "data.validation"
    assert (problem.message, problem.remedy) == (error.value.problems[0].message, "hold out at least 2")
