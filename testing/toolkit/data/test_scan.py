"""Scanning a folder: what becomes an item, a problem or a note."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from toolkit.data import scan as scan_module
from toolkit.data.items import Bucket, CaptionRules
from toolkit.data.scan import ScanResult, item_id, scan_dataset
from toolkit.errors import DatasetError

Scan = Callable[..., ScanResult]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "cats"
    path.mkdir()
    return path


@pytest.fixture
def scan(folder: Path, tmp_path: Path) -> Scan:
    """Scans `folder` at 32 px, remembering outside of it."""
    return partial(scan_dataset, folder, resolutions=[32], size_multiple=8, memo=tmp_path / "memo")


def draw(path: Path, color: int = 0, size: tuple[int, int] = (40, 40), caption: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "jpeg" if path.suffix.lower() == ".jpg" else path.suffix[1:].lower()
    Image.new("RGB", size, (color, 0, 255 - color)).save(path, kind)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


def names(result: ScanResult, folder: Path) -> list[str]:
    return [item.path.relative_to(folder).as_posix() for item in result.items]


def test_walk_finds_every_picture_in_a_stable_order(folder: Path, scan: Scan) -> None:
    wanted = ["B.JPG", "a.png", "sub/c.jpeg", "sub/deep/d.WebP", "z.webp"]
    for number, name in enumerate(reversed(wanted)):
        draw(folder / name, number)
    for name in (
        "._a.png",
        ".hidden/x.png",
        "_controls/x.png",
        "sub/_latent_cache/x.png",
        "_t_e_cache/x.png",
    ):
        draw(folder / name)
    (folder / "notes.md").write_text("no picture")
    result = scan()
    assert names(result, folder) == wanted
    assert result.problems == []
    assert result.num_pictures == 5


def test_linked_folders_are_followed_and_loops_are_not(folder: Path, scan: Scan, tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere" / "b.png", 1)
    draw(folder / "a.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    assert names(scan(), folder) == ["a.png", "link/b.png"]


def test_every_unusable_picture_is_listed(folder: Path, scan: Scan) -> None:
    draw(folder / "good.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    whole = draw(folder / "cut.webp", 7).read_bytes()
    (folder / "cut.webp").write_bytes(whole[: len(whole) // 2])
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    result = scan()
    assert names(result, folder) == ["good.png"]
    listed = [Path(problem.file or "").name for problem in result.problems]
    assert listed == ["cut.webp", "dangling.png", "empty.png", "text.jpg"]
    with pytest.raises(DatasetError) as caught:
        result.require_valid()
    assert len(str(caught.value).splitlines()) == 4
    assert scan().problems == result.problems  # not forgotten by the memo


def test_empty_and_missing_folders(folder: Path, scan: Scan) -> None:
    (folder / "a.txt").write_text("a caption without a picture")
    [problem] = scan().problems
    assert str(folder) in problem.message
    assert "no images found" in problem.message
    assert "*.webp" in problem.message
    options = {"resolutions": [32], "size_multiple": 8}
    [problem] = scan_dataset(folder / "nowhere", **options).problems
    assert "no such folder" in str(problem)
    [problem] = scan_dataset(folder / "a.txt", **options).problems
    assert "is a file" in str(problem)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_no_report_can_hold_are_problems(folder: Path, scan: Scan) -> None:
    draw(folder / "a.png", caption="a").rename(os.fsdecode(bytes(folder) + b"/\xff.png"))
    assert [str(p) for p in scan().problems] == [f"{folder}/\\udcff.png: its name is not UTF-8 (rename it)"]


def test_other_kinds_of_files_are_noted(folder: Path, scan: Scan) -> None:
    draw(folder / "a.png", caption="x")
    (folder / "b.gif").write_bytes(b"GIF89a")
    (folder / "c.mp4").write_bytes(b"video")
    [note] = scan().notes
    assert "b.gif, c.mp4" in note


def test_captions_trigger_and_default(folder: Path, scan: Scan) -> None:
    draw(folder / "a.png", 1, caption="a photo of [trigger]")
    draw(folder / "b.png", 2, caption="  ")
    draw(folder / "c.png", 3)
    result = scan(default_caption="a  cat", trigger_word="sks")
    assert [item.caption for item in result.items] == ["a photo of sks", "sks a cat", "sks a cat"]
    [note] = result.notes
    assert "2 of 3 pictures have no caption of their own" in note
    reg = scan(default_caption="a cat", trigger_word="sks", is_reg=True)
    assert [item.caption for item in reg.items] == ["a photo of sks", "a cat", "a cat"]
    assert all(item.is_reg for item in reg.items)


def test_missing_captions_are_counted_and_named(folder: Path, scan: Scan) -> None:
    draw(folder / "a.png", 1, caption="x")
    for number in range(8):
        draw(folder / f"m{number}.png", 10 + number)
    result = scan()
    [note] = result.notes
    assert "8 of 9 pictures have no caption" in note
    assert "m0.png, m1.png, m2.png, m3.png, m4.png and 3 more" in note
    assert result.problems == []
    assert len(result.items) == 9


def test_captions_of_another_kind_are_pointed_at(folder: Path, scan: Scan) -> None:
    draw(folder / "a.png", caption="x")
    assert "set caption_ext: .txt" in scan(caption_ext="caption").notes[0]
    (folder / "a.caption").write_text("y")
    assert scan(caption_ext="caption").items[0].caption == "y"


def test_unreadable_captions_are_problems(folder: Path, scan: Scan) -> None:
    for name in ("a", "b"):
        draw(folder / f"{name}.png", ord(name), caption="x")
        (folder / f"{name}.txt").write_bytes("Bär".encode("latin-1"))
    assert [Path(problem.file or "").name for problem in scan().problems] == ["a.txt", "b.txt"]


def test_resolutions_flips_and_repeats_multiply_the_items(folder: Path, scan: Scan) -> None:
    draw(folder / "a.png", 1, (64, 64), "x")
    draw(folder / "b.png", 2, (128, 64), "y")
    assert len(scan().items) == 2
    assert len(scan(flip_x=True).items) == 4
    assert len(scan(flip_y=True).items) == 4
    result = scan(resolutions=[32, 64], flip_x=True, flip_y=True, num_repeats=3)
    assert len(result.items) == len({item.id for item in result.items}) == 2 * 2 * 4 * 3
    first = [item for item in result.items if item.path.name == "a.png"]
    assert Counter(item.bucket for item in first) == {Bucket(32, 32): 12, Bucket(64, 64): 12}
    flips = Counter((item.placement.flip_x, item.placement.flip_y) for item in first)
    assert flips == {(x, y): 6 for x in (False, True) for y in (False, True)}
    assert scan(flip_x=True).items[1].placement.flip_x
    assert not scan(flip_x=True).items[1].placement.flip_y
    assert {item.path.name: item.source_size for item in result.items} == {
        "a.png": (64, 64),
        "b.png": (128, 64),
    }


def test_a_resolution_given_twice_counts_once(folder: Path, scan: Scan) -> None:
    draw(folder / "a.png", caption="x")
    result = scan(resolutions=[32, 32])
    assert len(result.items) == 1
    assert "twice" in result.notes[0]


def test_settings_reach_the_items(folder: Path, scan: Scan) -> None:
    draw(folder / "a.png", size=(80, 40))
    settings = {
        "loss_multiplier": 0.5,
        "network_weight": 0.75,
        "alpha_color": (1, 2, 3),
    }
    [item] = scan(**settings).items
    assert {key: getattr(item, key) for key in settings} == settings
    assert item.dataset == "cats"
    rules = CaptionRules(dropout_rate=0.25, keep_tokens=2)
    [ruled] = scan(caption_rules=rules, trigger_word="sks", is_reg=True).items
    assert ruled.caption_rules == replace(rules, trigger_word="sks", prepend_trigger=False)
    assert scan(name="other").items[0].dataset == "other"
    assert item.bucket != Bucket(32, 32)
    assert scan(use_buckets=False).items[0].bucket == Bucket(32, 32)


def test_ids_depend_on_content_and_dataset_only(folder: Path, scan: Scan, tmp_path: Path) -> None:
    draw(folder / "a.png", 1, caption="x")
    [item] = scan().items
    assert item.id == item_id(item.sha256, "cats", 32)
    (folder / "a.png").rename(folder / "renamed.png")
    assert scan().items[0].id == item.id
    moved = tmp_path / "elsewhere" / "cats"
    moved.parent.mkdir()
    folder.rename(moved)
    again = scan_dataset(moved, resolutions=[32], size_multiple=8, memo=tmp_path / "memo")
    assert again.items[0].id == item.id
    other = scan_dataset(moved, name="dogs", resolutions=[32], size_multiple=8, memo=tmp_path / "memo")
    assert other.items[0].id != item.id


def test_copies_of_a_picture_have_ids_of_their_own_and_are_noted(folder: Path, scan: Scan) -> None:
    for name in ("a.png", "b.png", "c.png"):
        draw(folder / name, 1, caption=name)
    draw(folder / "d.png", 2, caption="d")
    result = scan(num_repeats=2)
    assert len({item.id for item in result.items}) == 8
    assert "a.png = b.png = c.png" in result.notes[0]


def test_enlarged_pictures_are_noted(folder: Path, scan: Scan) -> None:
    draw(folder / "large.png", 1, (40, 40), "x")
    draw(folder / "strip.png", 2, (200, 6), "x")
    [note] = scan().notes
    assert "1 of 2 pictures" in note
    assert "strip.png" in note
    assert "2.67 times" in note
    assert not any("large.png" in note for note in scan(use_buckets=False).notes)


def test_remarks_become_notes(folder: Path, scan: Scan) -> None:
    frames = [Image.new("RGB", (40, 40), (1, 2, 3))]
    Image.new("RGB", (40, 40)).save(folder / "a.png", save_all=True, append_images=frames)
    for _ in range(2):
        assert any("a.png: animated (2 frames)" in note for note in scan(default_caption="x").notes)


def test_summary_and_buckets(folder: Path, scan: Scan) -> None:
    for number in range(3):
        draw(folder / f"{number}.png", number, caption="x")
    draw(folder / "wide.png", 9, (160, 40), "x")
    result = scan()
    assert result.buckets == {Bucket(32, 32): 3, Bucket(64, 16): 1}
    assert result.summary == "4 pictures, 4 items in 2 buckets (32x32: 3, 64x16: 1)"


def test_progress_counts_every_picture(folder: Path, scan: Scan) -> None:
    for number in range(4):
        draw(folder / f"{number}.png", number)
    seen: list[tuple[int, int]] = []
    scan(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_two_scans_are_equal(folder: Path, scan: Scan) -> None:
    for number in range(20):
        draw(folder / f"{number}.png", number, (30 + number, 40))
    assert scan() == scan()


def count_opens(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    opened: list[object] = []
    real = Image.open

    def counting(*args: object, **kwargs: object) -> Image.Image:
        opened.append(args)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", counting)
    return opened


def age(folder: Path, seconds: float = 60) -> None:
    """Make files look older than what the memo waits for."""
    for path in folder.rglob("*.png"):
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - int(seconds * 1e9)))


def test_a_second_scan_opens_no_picture(folder: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        draw(folder / f"{number}.png", number)
    age(folder)
    opened = count_opens(monkeypatch)
    first = scan()
    assert len(opened) == 5
    assert scan() == first
    assert len(opened) == 5
    draw(folder / "3.png", 200)  # the one that changed is opened, and only that one
    second = scan()
    assert len(opened) == 6
    assert second.items[3].sha256 != first.items[3].sha256
    assert [a == b for a, b in zip(first.items, second.items, strict=True)] == [True] * 3 + [False, True]


def test_a_rescan_opens_every_picture_and_is_remembered(
    folder: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number in range(3):
        draw(folder / f"{number}.png", number)
    age(folder)
    first = scan()
    # A memo that lies, as after a disk's silent fault: only looking at the files again can tell.
    [memo] = (tmp_path / "memo" / "images").iterdir()
    memo.write_text(memo.read_text().replace(first.items[0].sha256, "0" * 64))
    assert scan().items[0].sha256 == "0" * 64
    opened = count_opens(monkeypatch)
    assert scan(rescan=True) == first
    assert len(opened) == 3
    assert scan() == first
    assert len(opened) == 3


def test_a_swapped_picture_of_equal_size_and_time_is_noticed(folder: Path, scan: Scan) -> None:
    path = folder / "a.png"
    draw(path, 1)
    age(folder)
    first = scan().items[0]
    stat = path.stat()
    draw(path, 2)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert scan().items[0].sha256 != first.sha256


def test_a_file_just_written_is_not_remembered_yet(
    folder: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(folder / "a.png")
    opened = count_opens(monkeypatch)
    scan()
    scan()
    assert len(opened) == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema_version": 99, "files": {}}', '{"schema_version": 1}']
)
def test_a_damaged_memo_is_made_anew(folder: Path, scan: Scan, tmp_path: Path, content: str) -> None:
    draw(folder / "a.png")
    age(folder)
    first = scan()
    [path] = (tmp_path / "memo" / "images").iterdir()
    whole = path.read_text()
    path.write_text(content)
    assert scan() == first
    assert path.read_text() == whole


def test_an_entry_of_the_memo_with_wrong_types_is_made_anew(folder: Path, scan: Scan, tmp_path: Path) -> None:
    draw(folder / "a.png")
    age(folder)
    first = scan()
    [path] = (tmp_path / "memo" / "images").iterdir()
    path.write_text(path.read_text().replace('"width": 40', '"width": "wide"'))
    assert scan() == first


def test_a_memo_that_cannot_be_written_is_a_note(folder: Path, scan: Scan, tmp_path: Path) -> None:
    draw(folder / "a.png", caption="x")
    age(folder)
    (tmp_path / "memo").write_text("a file where the folder should be")
    result = scan()
    assert len(result.items) == 1
    assert "cannot be written" in result.notes[0]


def test_the_dataset_folder_stays_as_it_was(folder: Path, scan: Scan) -> None:
    draw(folder / "a.png")
    age(folder)
    scan()
    assert [path.name for path in folder.iterdir()] == ["a.png"]


def test_the_default_memo_is_in_the_users_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw(folder / "a.png")
    age(folder)
    scan_dataset(folder, resolutions=[32], size_multiple=8)
    assert len(list((tmp_path / "cache" / "ai-toolkit" / "images").glob("*.json"))) == 1


def test_scanning_needs_no_torch() -> None:
    code = f"import sys, {scan_module.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
