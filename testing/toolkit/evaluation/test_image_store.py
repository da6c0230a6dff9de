"""Reports of images on disk read as a list of them does."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from unittest import mock

import pytest

from testing.eval_helpers import a_run
from toolkit.errors import RunError
from toolkit.evaluation.html_report import render
from toolkit.evaluation.image_store import ImageStore
from toolkit.evaluation.report import DatasetReport, EditReport, ImageReport, Report, write_report
from toolkit.paths import ROOT


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


def test_a_page_does_not_hold_all_that_was_changed_in_captions(tmp_path):
    """A hundred images with two hundred long captions each, of which it shows the first eight."""
    store = ImageStore(tmp_path)
    for number in range(100):
        edits = [changed(number, i) for i in range(200)]
        store.append(image(number, edits=edits))
    report = Report.model_construct(run=a_run(), datasets=[dataset_report()], notes=[], images=store)
    tracemalloc.start()
    try:
        page = render(report)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert page.count("without part ") == 100 * 8 and "without part 7<" in page
    assert most < 12e6  # of 40 million letters


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line_also_when_it_is_closed(tmp_path):
    """In a process of its own: what goes wrong at its end is only printed."""
    code = """
import sys, tempfile
from pathlib import Path
from testing.toolkit.evaluation.test_image_store import ImageStore, RunError, image
tempfile.TemporaryFile = lambda dir, buffering=-1: open("/dev/full", "r+b", buffering=buffering)
store = ImageStore(Path(sys.argv[1]))
try:
    store.append(image(0))
except RunError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert re.search(r"reports of images: cannot be written: No space left.*free some space", ended.stdout)
    assert ended.stderr == ""


def test_what_the_system_takes_in_parts_is_written_whole(tmp_path):
    store = ImageStore(tmp_path)
    file, store._file = store._file, mock.Mock(wraps=store._file)
    store._file.write.side_effect = lambda data: file.write(data[:100])
    store.append(image(0))
    assert store._file.write.call_count > 2 and store[0] == image(0)


def test_what_cannot_be_read_back_is_one_line(store):
    store._file.close()
    store._file = open(store._place.parent / "x", "wb", buffering=0)  # noqa: SIM115, PTH123 - for writing only
    with pytest.raises(RunError, match="reports of images: cannot be read"):
        store[0]
    store._file.close()


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


def changed(number: int, place: int) -> EditReport:
    return EditReport(part=f"part {place}", caption=f"{number} {place} {'word ' * 400}", log_ratio=place)


def dataset_report() -> DatasetReport:
    path = 'x\n "images": []'
    return DatasetReport(path=path, num_images=1, num_measured=1, mean_loss=1, median_loss=1, log_ratio=None)
