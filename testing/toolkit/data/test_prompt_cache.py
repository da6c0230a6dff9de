"""Conditioning by caption: computed once, whole, and anew for another encoder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from toolkit.data.prompt_cache import PromptCache
from toolkit.errors import JobStopped
from toolkit.prompt_utils import Conditioning


class Encoder:
    """One token per letter; counts its calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, captions: list[str]) -> Conditioning:
        self.calls.append(captions)
        [caption] = captions
        codes = torch.tensor([[float(ord(letter)) for letter in caption] or [0.0]], requires_grad=True)
        embeds = codes[..., None].repeat(1, 1, 2)
        extra = {"sizes": torch.tensor([[1, 2]])}
        return Conditioning(embeds, torch.ones(codes.shape, dtype=torch.int64), embeds.mean(1), extra)


@pytest.fixture(params=["memory", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "cache" if request.param == "disk" else None


def test_fill_then_get_all_parts(folder: Path | None) -> None:
    cache, encoder = PromptCache(folder, "encoder"), Encoder()
    seen: list[tuple[int, int]] = []
    texts = ["a cat", "", "ein Bär", "a cat"]
    assert cache.fill(texts, encoder, progress=lambda done, total: seen.append((done, total))) == 3
    assert encoder.calls == [["a cat"], [""], ["ein Bär"]]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for text in texts:
        found, wanted = cache.get(text), Encoder()([text])
        assert found is not None
        assert len(found) == 1
        for name, tensor in wanted.tensors().items():
            assert torch.equal(found.tensors()[name], tensor)
            assert found.tensors()[name].dtype == tensor.dtype
        assert not found.embeds.requires_grad
    assert cache.fill(texts, encoder) == 0


def test_another_encoder_finds_nothing(tmp_path: Path) -> None:
    PromptCache(tmp_path, "one").fill(["a"], Encoder())
    assert PromptCache(tmp_path, "one").get("a") is not None
    assert PromptCache(tmp_path, "two").get("a") is None
    assert PromptCache(tmp_path, "one").get("b") is None


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, "encoder")
    cache.fill(["a"], Encoder())
    [path] = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    cache = PromptCache(tmp_path, "encoder")
    assert cache.get("a") is None
    assert len(cache.notes) == 1
    assert cache.fill(["a"], Encoder()) == 1
    assert cache.get("a") is not None


def test_damage_that_shows_amid_a_run_is_made_good_there(tmp_path: Path) -> None:
    PromptCache(tmp_path, "encoder").fill(["a"], Encoder())
    [path] = tmp_path.rglob("*.safetensors")
    whole, told = path.read_bytes(), list[str]()
    path.write_bytes(whole[:-3])
    cache, encoder = PromptCache(tmp_path, "encoder", tell=told.append), Encoder()
    assert cache.fill(["a"], encoder) == 0
    found = cache.get("a")
    assert found is not None and torch.equal(found.embeds, Encoder()(["a"]).embeds)
    assert not found.embeds.requires_grad
    assert encoder.calls == [["a"]]
    assert PromptCache(tmp_path, "encoder").get("a") is not None  # whole again
    assert len(told) == 1 and str(path) in told[0]


def test_what_is_encoded_amid_a_step_is_not_encoded_in_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.data.prompt_cache.KEEP_BYTES", 0)
    layer, cache = torch.nn.Linear(4, 4), PromptCache(tmp_path / "cache", "encoder")
    cache.fill(["a"], lambda texts: Conditioning(layer(torch.ones(1, 1, 4))))
    before = cache.get("a")
    shutil.rmtree(tmp_path / "cache")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.ones(4)).dtype == torch.bfloat16
        after = cache.get("a")
    assert before is not None and after is not None
    assert torch.equal(after.embeds, before.embeds) and after.embeds.dtype == torch.float32


@pytest.mark.parametrize("filled_by", ["this run", "an earlier run"])
def test_a_folder_that_vanishes_amid_a_run_takes_nothing_along(tmp_path: Path, filled_by: str) -> None:
    folder = tmp_path / "cache"
    cache = PromptCache(folder, "encoder")
    if filled_by == "an earlier run":
        PromptCache(folder, "encoder").fill(["a", "b"], Encoder())
    assert cache.fill(["a", "b"], Encoder()) == (2 if filled_by == "this run" else 0)
    shutil.rmtree(folder)
    for text in "ab":
        found = cache.get(text)
        assert found is not None
        assert torch.equal(found.embeds, Encoder()([text]).embeds)


def test_stopping_keeps_what_is_done(folder: Path | None) -> None:
    cache, encoder = PromptCache(folder, "encoder"), Encoder()
    with pytest.raises(JobStopped, match="1 of 3"):
        cache.fill(["a", "b", "c"], encoder, should_stop=lambda: len(encoder.calls) == 1)
    assert cache.fill(["a", "b", "c"], encoder) == 2


def test_one_caption_at_a_time() -> None:
    two = Conditioning(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="one caption"):
        PromptCache(None, "encoder").put("a", two)
