"""Folders captioned: what is written, what stays, what is undone. A stand-in for a model names colours."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from toolkit.captioning import service
from toolkit.captioning.captioner import Said
from toolkit.captioning.record import undo
from toolkit.captioning.request import CaptionRequest
from toolkit.captioning.service import run_captioning, shrunk
from toolkit.data.scan import scan_dataset
from toolkit.errors import ConfigError, DatasetError, JobStopped, RunError
from toolkit.runs.watcher import Watcher

COLOURS = {"a": (200, 0, 0), "b": (0, 200, 0), "c": (0, 0, 200), "d": (90, 90, 90)}


class Namer:
    """Says the colour of a picture; counts what it is asked."""

    def __init__(
        self, fail: Callable[[int], BaseException | None] = lambda size: None, text: str = ""
    ) -> None:
        self.fail = fail
        self.text = text
        self.batches: list[int] = []

    def caption(self, images: Sequence[Image.Image]) -> list[Said]:
        self.batches.append(len(images))
        error = self.fail(len(images))
        if error is not None:
            raise error
        return [Said(self.text or f"a photo of {image.getpixel((0, 0))}", cut=False) for image in images]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, colour in COLOURS.items():
        Image.new("RGB", (12, 8), colour).save(folder / ("more" if name == "d" else "") / f"{name}.png")
    (folder / "b.txt").write_text("by hand\n", encoding="utf-8")
    (folder / "c.txt").write_text(" \n", encoding="utf-8")
    return folder


def request(photos: Path, **changes: Any) -> CaptionRequest:
    return CaptionRequest([str(photos)], "stand-in", out_dir=photos.parent / "out", **changes)


def caption(asked: CaptionRequest, namer: Namer, watcher: Watcher | None = None) -> Any:
    return run_captioning(asked, watcher, load=lambda: namer)  # type: ignore[arg-type,return-value]


def texts(folder: Path, suffix: str = ".txt") -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.rglob(f"*{suffix}"))}


def said(name: str) -> str:
    return f"{COLOURS[name]}\n"


def test_only_pictures_without_a_caption_get_one(photos):
    before = {path: path.read_bytes() for path in photos.rglob("*.png")}
    summary = caption(request(photos, batch_size=2), namer := Namer())
    assert (summary.num_captioned, summary.num_kept, namer.batches) == (3, 1, [2, 1])
    assert texts(photos) == {"a": said("a"), "b": "by hand\n", "c": said("c"), "d": said("d")}
    assert {path: path.read_bytes() for path in photos.rglob("*.png")} == before
    assert len(list(photos.rglob("*"))) == len(COLOURS) * 2 + 1  # nothing else was left there
    assert caption(request(photos), namer := Namer()).num_captioned == 0
    assert namer.batches == []


def test_recaption_replaces_and_undo_puts_back(photos):
    before = texts(photos)
    caption(request(photos, recaption=True, prefix="zrb,"), Namer())
    assert texts(photos) == {name: f"zrb, {said(name)}" for name in COLOURS}
    restored, left = undo(photos.parent / "out" / "captions.jsonl")
    assert (restored, left, texts(photos)) == (4, [], before)
    assert undo(photos.parent / "out" / "captions.jsonl") == (0, [])


def test_undo_of_what_is_not_there_is_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match="captions.jsonl: no such file"):
        undo(tmp_path / "captions.jsonl")


def test_undo_leaves_what_was_changed_since(photos):
    caption(request(photos), Namer())
    (photos / "a.txt").write_text("better", encoding="utf-8")
    restored, left = undo(photos.parent / "out" / "captions.jsonl")
    assert restored == 2 and left == [f"{photos / 'a.txt'}: changed since, left as it is"]
    assert texts(photos) == {"a": "better", "b": "by hand\n", "c": " \n"}


def test_undo_puts_back_what_holds_other_ends_of_lines(photos):
    """U+2028 and U+0085 end lines for Python, not for JSON: a caption with them is one row still."""
    Image.new("RGB", (12, 8), COLOURS["a"]).save(photos / "e\u2028f.png")
    (photos / "a.txt").write_text("my own\u2028caption,\u0085 by hand\n", encoding="utf-8")
    before = texts(photos)
    caption(request(photos, recaption=True), Namer())
    assert undo(photos.parent / "out" / "captions.jsonl") == (5, [])
    assert texts(photos) == before


def test_undo_goes_on_past_a_file_of_another_encoding(photos):
    caption(request(photos), Namer())
    (photos / "a.txt").write_bytes("better".encode("utf-16"))
    restored, left = undo(photos.parent / "out" / "captions.jsonl")
    assert restored == 2 and left == [f"{photos / 'a.txt'}: changed since, left as it is"]


def test_undo_takes_back_a_run_and_not_the_stopped_one_of_another_folder(photos):
    namer = Namer()
    with pytest.raises(JobStopped):
        caption(request(photos), namer, Watcher(should_stop=lambda: len(namer.batches) == 2))
    other = photos.parent / "other"
    other.mkdir()
    Image.new("RGB", (12, 8), COLOURS["a"]).save(other / "x.png")
    caption(CaptionRequest([str(other)], "stand-in", out_dir=photos.parent / "out"), Namer())
    assert undo(photos.parent / "out" / "captions.jsonl") == (1, [])
    assert texts(other) == {} and texts(photos)["a"] == said("a")


def test_undo_begins_with_what_was_written_last(photos):
    asked, namer = request(photos, recaption=True), Namer()
    with pytest.raises(JobStopped):
        caption(asked, namer, Watcher(should_stop=lambda: len(namer.batches) == 2))
    (photos / "a.txt").write_text("by hand since\n", encoding="utf-8")
    caption(asked, Namer())
    undo(photos.parent / "out" / "captions.jsonl")
    assert texts(photos)["a"] == "by hand since\n"


def test_what_stood_there_is_noted_before_it_is_replaced(photos, monkeypatch):
    """A kill between the two leaves a note too many, never a caption that cannot be had back."""

    def killed(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("toolkit.captioning.record.atomic.write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        caption(request(photos, recaption=True), Namer())
    rows = (photos.parent / "out" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(rows[-1])["file"] == str(photos / "a.txt")


def test_a_dry_run_shows_and_writes_nothing(photos):
    before, lines = texts(photos), []
    caption(request(photos, dry_run=True, max_samples=2), Namer(), Watcher(say=lines.append))
    assert texts(photos) == before and not (photos.parent / "out").exists()
    assert lines[0] == "2 pictures to caption, 1 with a caption, 1 beyond max_samples"
    assert lines[1:] == [f"{photos / name}.png: {COLOURS[name[-1]]}" for name in ("a", "c")]


@pytest.mark.parametrize("recaption", [False, True])
def test_a_stopped_run_goes_on(photos, recaption):
    asked = request(photos, recaption=recaption)
    namer = Namer()
    with pytest.raises(JobStopped, match="stopped after 2 of"):
        caption(asked, namer, Watcher(should_stop=lambda: len(namer.batches) == 2))
    (photos / "a.txt").write_text("by hand since\n", encoding="utf-8")
    caption(asked, again := Namer())
    # Of the two that were done, one was changed since: recaption asks for it again.
    assert len(again.batches) == (3 if recaption else 1)
    assert texts(photos)["a"] == (said("a") if recaption else "by hand since\n")
    caption(asked, third := Namer())
    assert len(third.batches) == (4 if recaption else 0)  # after a finished run, all of them again


def test_a_line_cut_short_by_a_kill_is_passed_over(photos):
    asked = request(photos, recaption=True)
    namer = Namer()
    with pytest.raises(JobStopped):
        caption(asked, namer, Watcher(should_stop=lambda: len(namer.batches) == 2))
    with asked.record_path.open("a", encoding="utf-8") as file:
        file.write('{"image": "/x')
    caption(asked, again := Namer())
    assert len(again.batches) == 2
    lines = asked.record_path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1]) == {"finished": True}


def test_json_captions_keep_their_other_keys(photos):
    (photos / "a.json").write_text('{"caption_short": "kept", "tags": [1]}', encoding="utf-8")
    (photos / "b.json").write_text('"just a text"', encoding="utf-8")
    caption(request(photos, caption_ext=".json", recaption=True), Namer())
    assert json.loads((photos / "a.json").read_text()) == {
        "caption_short": "kept", "tags": [1], "caption": str(COLOURS["a"]),
    }  # fmt: skip
    assert json.loads((photos / "b.json").read_text()) == {"caption": str(COLOURS["b"])}
    assert json.loads((photos / "more" / "d.json").read_text()) == {"caption": str(COLOURS["d"])}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("recaption", [False, True])
def test_everything_wrong_is_told_before_a_model_is_loaded(photos, recaption):
    (photos / "bad.png").write_bytes(b"\x89PNG nothing")
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "d2.png").write_bytes((photos / "a.png").read_bytes())
    (photos / "d2.txt").write_bytes(b"\xff\xfea\0")
    (photos / "a.png").rename(os.fsdecode(bytes(photos) + b"/\xff.png"))
    before = texts(photos.parent, ".png.none")
    with pytest.raises(DatasetError) as error:
        run_captioning(request(photos, recaption=recaption), load=lambda: pytest.fail("loaded"))
    named = {Path(problem.file or "").name: problem.code for problem in error.value.problems}
    assert named == {
        "bad.png": "data.unreadable_image", "empty.jpg": "data.unreadable_image",
        "d2.txt": "data.caption_file", "\\udcff.png": "data.file_name",
    }  # fmt: skip
    assert texts(photos.parent, ".png.none") == before and not (photos / "a.txt").exists()


def test_a_stopped_run_goes_on_past_a_file_of_another_encoding(photos):
    asked, namer = request(photos, recaption=True), Namer()
    with pytest.raises(JobStopped):
        caption(asked, namer, Watcher(should_stop=lambda: len(namer.batches) == 2))
    (photos / "a.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"a\.txt: the caption is not UTF-8"):
        caption(asked, Namer())


def test_what_no_file_can_hold_is_told_first(photos):
    with pytest.raises(ConfigError, match="prefix: cannot be written as UTF-8"):
        caption(request(photos, prefix="caf\udce9,"), Namer())
    (photos / "a.json").write_text('{"title": "\\ud83d cat"}', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"a\.json: holds half a character"):
        caption(request(photos, caption_ext=".json", recaption=True), Namer())


def test_an_opening_that_was_asked_for_stays(photos):
    caption(request(photos, prompt="A photo of"), Namer())
    assert texts(photos)["a"] == f"a photo of {said('a')}"


def test_folders_that_are_not_there_or_empty(tmp_path, photos):
    with pytest.raises(ConfigError, match="dataset_path: no such folder: nowhere"):
        caption(CaptionRequest(["nowhere"], "x", out_dir=tmp_path), Namer())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no pictures"):
        caption(CaptionRequest([str(tmp_path / "empty")], "x", out_dir=tmp_path), Namer())
    (photos / "a.jpg").write_bytes((photos / "a.png").read_bytes())
    lines: list[str] = []
    caption(request(photos), Namer(), Watcher(say=lines.append))
    assert any("a.png has the caption file of a.jpg, and is not captioned" in line for line in lines)


def test_a_picture_that_vanishes_is_named_and_the_others_go_on(photos):
    namer = Namer()
    gone = photos / "c.png"
    watcher = Watcher(should_stop=lambda: gone.unlink(missing_ok=True) is not None)
    with pytest.raises(RunError, match="c.png"):
        caption(request(photos), namer, watcher)
    assert texts(photos) == {"a": said("a"), "b": "by hand\n", "c": " \n", "d": said("d")}


def test_a_model_that_says_nothing_is_told(photos):
    with pytest.raises(RunError, match=r"a\.png: the model says nothing about it") as error:
        caption(request(photos), Namer(text="  "))
    assert [problem.code for problem in error.value.problems] == ["caption.empty"] * 3
    assert not (photos / "a.txt").exists()


def test_too_little_memory_means_fewer_at_once(photos):
    lines: list[str] = []
    namer = Namer(fail=lambda size: MemoryError() if size > 1 else None)
    caption(request(photos, batch_size=4), namer, Watcher(say=lines.append))
    assert namer.batches == [3, 1, 1, 1]
    assert "note: not enough memory for 3 pictures at once; 1 from here on" in lines
    (photos / "a.txt").unlink()
    with pytest.raises(RunError, match=r"a\.png.*cheapest first: resolution below 1024"):
        caption(request(photos), Namer(fail=lambda size: MemoryError()))
    with pytest.raises(RuntimeError, match="a bug"):
        caption(request(photos), Namer(fail=lambda size: RuntimeError("a bug")))


def test_large_pictures_are_scaled_down_in_their_proportions():
    assert shrunk(Image.new("RGB", (400, 100)), 100).size == (200, 50)
    assert shrunk(Image.new("RGB", (90, 90)), 100).size == (90, 90)


def test_two_at_once_are_refused(photos):
    asked = request(photos)

    class Nested(Namer):
        def caption(self, images: Sequence[Image.Image]) -> list[Said]:
            with pytest.raises(RunError, match="process"):
                caption(asked, Namer())
            return super().caption(images)

    caption(asked, Nested())
    assert service.count(1, "picture") == "1 picture"


def test_what_a_training_verified_is_still_known_afterwards(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = time.time() - 60
    for path in photos.rglob("*.png"):
        os.utime(path, (before, before))
    scan_dataset(photos, resolutions=[32], size_multiple=8)
    (memo,) = (tmp_path / "cache").rglob("images/*.json")
    known = memo.read_bytes()
    caption(request(photos), Namer())
    assert memo.read_bytes() == known
