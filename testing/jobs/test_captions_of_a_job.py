"""What a job makes of captions: how long they are, their draws with and without a cache; what was shown."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from jobs import diffusion_data
from jobs.base_job import run_job
from jobs.scanning import scan_datasets
from testing.job_helpers import make_dataset, train, training_config
from testing.tiny_models import MAX_LENGTH, build_tiny_sd15
from toolkit.config_modules.loading import load_job
from toolkit.data.items import MediaItem
from toolkit.errors import DatasetError, JobStopped, ModelError
from toolkit.runs.checkpoints import list_checkpoints
from toolkit.runs.metrics import read_metrics
from toolkit.training.checkpoints import load_checkpoint

ROOM = MAX_LENGTH - 2


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path) -> Path:
    folder = make_dataset(tmp_path / "data")
    for path in folder.glob("*.txt"):
        path.write_text(f"{path.stem}, red, round, shiny, small")
    return folder


def dataset(data: Path, **changes: Any) -> dict[str, Any]:
    return {"datasets": [{"folder_path": str(data), "resolution": 32, "cache_latents": True} | changes]}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    _, newest = list_checkpoints(folder / "checkpoints")[-1]
    return load_checkpoint(newest).tensors["weights"]


def coverage(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "coverage.json").read_text(encoding="utf-8"))


def test_long_captions_are_counted_and_all_encoded_alike(tmp_path, model, data):
    for number in range(6):
        (data / f"disk{number}.txt").write_text(f"red, {number}")
    (data / "disk1.txt").write_text("red " * (ROOM + 1))
    (data / "disk3.txt").write_text("red " * (2 * ROOM + 1))
    folder = train(training_config(tmp_path, model, **dataset(data, cache_text_embeddings=True)))
    log = (folder / "log.txt").read_text(encoding="utf-8")
    assert "1 of 6 need 2, 1 of 6 need 3; all are encoded with 3" in log
    short = train(training_config(tmp_path, model, "free", **dataset(data, shuffle_tokens=True)))
    assert "1 of 6 need 2, 1 of 6 need 3" in (short / "log.txt").read_text(encoding="utf-8")


def test_captions_that_fill_the_memory_are_kept_on_disk(tmp_path, model, data, monkeypatch):
    small = train(training_config(tmp_path, model, "small", **dataset(data)))
    monkeypatch.setattr(diffusion_data, "_FEW_TEXTS", 2)
    monkeypatch.setattr(diffusion_data, "MOST_PROMPT_BYTES", 5000)
    assert not list(tmp_path.rglob("prompts"))
    large = train(training_config(tmp_path, model, "large", **dataset(data)))
    log = (large / "log.txt").read_text(encoding="utf-8")
    assert "note: 6 captions are 17.3 kB of embeddings, which are kept on disk" in log  # 6 x 30 x 24 floats
    assert list(tmp_path.rglob("prompts"))
    assert all(torch.equal(weight, weights(small)[name]) for name, weight in weights(large).items())


@pytest.mark.parametrize("changes", [{}, {"shuffle_tokens": True}, {"random_triggers": ["zzz"]}])
def test_captions_that_cannot_be_read_whole_are_all_named(tmp_path, model, data, changes):
    for name in ("disk1", "disk4"):
        (data / f"{name}.txt").write_text(f"{name}, " + "red " * (3 * ROOM))
    with pytest.raises(ModelError) as caught:
        train(training_config(tmp_path, model, **dataset(data, **changes)))
    assert [Path(problem.file).name for problem in caught.value.problems] == ["disk1.png", "disk4.png"]
    assert all(problem.code == "model.prompt_too_long" for problem in caught.value.problems)
    assert all(f"at most {3 * ROOM} can be read" in problem.message for problem in caught.value.problems)


VARIED = {"shuffle_tokens": True, "token_dropout_rate": 0.2, "caption_dropout_rate": 0.2, "keep_tokens": 1,
          "random_triggers": ["zqa", "zqb"], "trigger_word": "zrb"}  # fmt: skip


@pytest.mark.parametrize("cached", [False, True])
def test_varied_captions_resume_exactly(tmp_path, model, data, cached):
    changes = dataset(data, cache_text_embeddings=cached, caption_variants=3, **VARIED)
    settings = changes | {"train": {"steps": 12}}
    straight = train(training_config(tmp_path, model, "straight", **settings))
    stop_at = training_config(tmp_path, model, "broken", **changes | {"train": {"steps": 5}})
    train(stop_at)
    broken = train(training_config(tmp_path, model, "broken", **settings))
    one, two = weights(straight), weights(broken)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert coverage(straight)["times"] == coverage(broken)["times"]
    assert coverage(broken)["exact"]


def test_as_many_texts_are_encoded_as_there_are_variants(tmp_path, model, data):
    caption = dataset(data, cache_text_embeddings=True, shuffle_tokens=True, caption_variants=4)
    folder = train(training_config(tmp_path, model, **caption))
    assert "captions 24/24" in (folder / "log.txt").read_text(encoding="utf-8")
    free = train(training_config(tmp_path, model, "free", **dataset(data, shuffle_tokens=True)))
    log = (free / "log.txt").read_text(encoding="utf-8")
    assert "drawn anew for every showing" in log
    assert "Encoding captions" not in log
    losses = [[row["loss"] for row in read_metrics(f / "metrics.jsonl")] for f in (folder, free)]
    assert losses[0] != losses[1]


def test_a_strict_dataset_is_refused_before_anything_loads(tmp_path, data):
    (data / "disk2.txt").unlink()
    (data / "gone.txt").write_text("x")
    path = training_config(tmp_path, tmp_path / "no_model", **dataset(data, strict=True, resolution=64))
    loaded = load_job(path)
    with pytest.raises(DatasetError) as caught:
        scan_datasets(loaded.config.process[0], size_multiple=8)
    codes = [problem.code for problem in caught.value.problems]
    assert codes.count("data.no_caption") == codes.count("data.orphan_caption") == 1
    assert "data.enlarged" not in codes  # a picture smaller than its bucket gets a smaller bucket


def test_what_was_shown_is_told_at_the_end_and_after_a_change_of_data(tmp_path, model, data):
    settings = {"train": {"steps": 4, "batch_size": 1}}
    folder = train(training_config(tmp_path, model, **dataset(data), **settings))
    told = coverage(folder)
    assert (told["pictures"], told["showings"], told["min"], told["max"]) == (6, 4, 0, 1)
    assert len(told["never"]) == 2 and told["exact"] and told["step"] == 4
    assert "6 pictures were shown 0 to 1 times" in (folder / "log.txt").read_text(encoding="utf-8")
    Image.new("RGB", (32, 32), (9, 9, 9)).save(data / "new.png")
    train(training_config(tmp_path, model, **dataset(data), train={"steps": 7, "batch_size": 1}))
    assert coverage(folder)["pictures"] == 7
    assert not coverage(folder)["exact"]


def scanned(path: Path) -> list[MediaItem]:
    loaded = load_job(path)
    return scan_datasets(loaded.config.process[0], size_multiple=8).items


KEYS = [
    ("use_short_captions", True), ("replacements", ["red|blue"]), ("random_triggers", ["zqa"]),
    ("shuffle_tokens", True), ("token_dropout_rate", 0.5), ("trigger_word", "zrb"), ("default_caption", "x"),
    ("caption_dropout_rate", 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), KEYS, ids=[key for key, _ in KEYS])
def test_each_key_reaches_the_texts(tmp_path, key, value):
    from toolkit.data.caption_draws import final_caption

    data = make_dataset(tmp_path / "data")
    for number in range(5):
        content = {"caption": "a, red, round, disk", "caption_short": "a disk"}
        (data / f"disk{number}.json").write_text(json.dumps(content))

    def texts(name: str, **changes: Any) -> list[str]:
        path = training_config(tmp_path, tmp_path, name, **dataset(data, caption_ext="json", **changes))
        return [final_caption(item, 7, epoch) for item in scanned(path) for epoch in range(3)]

    assert texts("plain") != texts("changed", **{key: value})


@pytest.mark.parametrize(
    ("key", "value", "beside"),
    [
        ("keep_tokens", 2, {"shuffle_tokens": True}),
        ("random_triggers_max", 2, {"random_triggers": ["a", "b"]}),
        ("caption_variants", 2, {"shuffle_tokens": True, "cache_text_embeddings": True}),
    ],
)
def test_each_key_beside_another_reaches_the_texts(tmp_path, data, key, value, beside):
    from toolkit.data.caption_draws import final_caption

    def texts(name: str, **changes: Any) -> list[str]:
        path = training_config(tmp_path, tmp_path, name, **dataset(data, **beside, **changes))
        return [final_caption(item, 7, epoch) for item in scanned(path) for epoch in range(6)]

    assert texts("plain") != texts("changed", **{key: value})


def test_a_stopped_run_tells_what_it_showed(tmp_path, model, data, monkeypatch):
    path = training_config(tmp_path, model, **dataset(data), train={"steps": 50, "batch_size": 2})
    from jobs.training_run import TrainingRun

    real = TrainingRun.after_step

    def stopping(self: TrainingRun, report: Any) -> bool:
        if report.step == 4:
            (self.session.folder.commands / "stop").touch()
        return real(self, report)

    monkeypatch.setattr(TrainingRun, "after_step", stopping)
    with pytest.raises(JobStopped):
        train(path)
    told = coverage(tmp_path / "out" / "run")
    assert told["step"] == 4 and told["showings"] == sum(entry["times"] for entry in told["times"])


def test_a_rescan_corrects_what_was_remembered_wrongly(tmp_path, model, data):
    for path in data.glob("*.png"):
        os.utime(path, (1.7e9, 1.7e9))
    job = training_config(tmp_path, model, **dataset(data), train={"steps": 1})
    train(job)
    [memo] = (tmp_path / "cache" / "ai-toolkit" / "images").iterdir()
    text = memo.read_text(encoding="utf-8")
    memo.write_text(text.replace('"width": 48', '"width": 480'), encoding="utf-8")
    lie = [item.bucket for item in scanned(job)]
    run_job(replace(load_job(job), rescan=True))
    assert json.loads(memo.read_text(encoding="utf-8")) == json.loads(text)
    assert [item.bucket for item in scanned(job)] != lie
