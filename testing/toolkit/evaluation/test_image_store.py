"""Reports of images on disk read as a list of them does."""

from __future__ import annotations

import pytest

from testing.eval_helpers import a_run
from toolkit.errors import RunError
from toolkit.evaluation.image_store import ImageStore
from toolkit.evaluation.report import DatasetReport, ImageReport, Report, write_report


def image(number: int, **more: object) -> ImageReport:
    return ImageReport(
        path=f"{number}.png", dataset="d", caption=f'"images": []\n {number} \N{SNOWMAN}', sha256="0",
        width=8, height=8, num_draws=2, loss=number / 3, loss_with_caption=number / 3, **more,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path) -> ImageStore:
    made = ImageStore(tmp_path)
    for number in range(5):
        made.append(image(number, flagged=bool(number % 2)))
    return made


def test_it_reads_as_the_list_does(store):
    images = [image(number, flagged=bool(number % 2)) for number in range(5)]
    assert list(store) == images and len(store) == 5
    assert store[-1] == images[-1] and store[1:4:2] == images[1:4:2]
    assert store[2:4] == images[2:4]
    first, second = iter(store), iter(store)  # readers do not disturb each other
    assert [next(first), next(first), next(second)] == [images[0], images[1], images[0]]
    with pytest.raises(IndexError):
        store[5]


def test_nothing_is_left_of_it(tmp_path, store):
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RunError, match="cannot be written"):
        ImageStore(tmp_path / "missing")


@pytest.mark.parametrize("num", [0, 5])
def test_a_report_is_the_same_from_the_disk_and_from_memory(tmp_path, store, num):
    frame = {"run": a_run(), "datasets": [dataset_report()], "notes": ['"images": []', "b"]}
    whole = Report(images=list(store)[:num], **frame)
    write_report(whole, tmp_path / "memory.json")
    kept = store if num else ImageStore(tmp_path)
    write_report(Report.model_construct(images=kept, **frame), tmp_path / "disk.json")
    text = (tmp_path / "disk.json").read_text(encoding="utf-8")
    assert text == (tmp_path / "memory.json").read_text(encoding="utf-8")
    assert Report.model_validate_json(text) == whole


def dataset_report() -> DatasetReport:
    path = 'x\n "images": []'
    return DatasetReport(path=path, num_images=1, num_measured=1, mean_loss=1, median_loss=1, log_ratio=None)
