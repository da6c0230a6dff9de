"""Needs against free space, per disk."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from toolkit.preflight import disk
from toolkit.preflight.disk import MARGIN, Need, check_space, disk_lines, existing_folder, folder_bytes

Usage = namedtuple("Usage", "total used free")
GB = 10**9


@pytest.fixture
def free(monkeypatch):
    def set_free(num_bytes: int) -> None:
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: Usage(100 * GB, 0, num_bytes))

    return set_free


def test_a_disk_that_is_too_small_is_named_with_both_figures(tmp_path, free):
    free(3 * GB)
    needs = [
        Need("8 saved models", tmp_path / "new" / "run", 2 * GB),
        Need("3 checkpoints", tmp_path, 2 * GB),
    ]
    (problem,) = check_space(needs)
    assert problem.code == "run.disk_space"
    needed = "4.0 GB needed (8 saved models 2.0 GB, 3 checkpoints 2.0 GB) and 200 MB to be left free"
    assert f"{needed}, 3.0 GB free" in problem.message
    assert "training_folder" in problem.remedy


def test_the_margin_counts_and_unknown_sizes_do_not(tmp_path, free):
    free(2 * GB + MARGIN)
    assert check_space([Need("models", tmp_path, 2 * GB), Need("other", tmp_path, None)]) == []
    free(2 * GB + MARGIN - 1)
    assert len(check_space([Need("models", tmp_path, 2 * GB)])) == 1


def test_what_is_there_already_needs_no_room(tmp_path, free):
    free(GB)
    assert check_space([Need("models", tmp_path, 5 * GB, existing=5 * GB)]) == []
    assert Need("models", tmp_path, 5, existing=7).more == 0


def test_a_full_disk_is_no_problem_for_a_job_of_unknown_size(tmp_path, free):
    free(0)
    assert check_space([Need("models", tmp_path, None)]) == []


def test_sizes_of_folders(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x").write_bytes(b"12345")
    (tmp_path / "a" / "b" / "y").write_bytes(b"123")
    assert (folder_bytes(tmp_path / "a"), folder_bytes(tmp_path / "none")) == (8, 0)
    assert existing_folder(tmp_path / "c" / "d") == tmp_path
    assert existing_folder(Path("relative/not/there")) == Path.cwd()


def test_lines_tell_folder_by_folder(tmp_path, free):
    free(23 * GB)
    needs = [Need("2 saved models", tmp_path, 37 * 10**6), Need("1 checkpoint", tmp_path, None)]
    assert disk_lines(needs) == [
        f"{tmp_path}: 2 saved models about 37.0 MB, 1 checkpoint of unknown size; 23.0 GB free"
    ]
