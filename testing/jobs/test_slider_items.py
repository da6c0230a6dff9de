"""The epoch of a text slider: every target, phrase, size and direction, with keyed noise and levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.slider_items import make_data, make_items, read_slides
from toolkit.config_modules.process import SliderProcess
from toolkit.diffusion.objectives import FlowMatching
from toolkit.diffusion.partial_denoising import noise_levels
from toolkit.errors import ConfigError
from toolkit.models.base import LatentSpec

SPEC = LatentSpec(channels=4, downscale=4, size_multiple=8)


def section(slider: dict[str, Any], batch_size: int = 2, **more: Any) -> SliderProcess:
    base = {"targets": [{"target_class": "a cat", "positive": "a red cat", "negative": "a blue cat"}],
            "resolutions": [[32, 32]], "max_denoising_steps": 4}  # fmt: skip
    return SliderProcess.model_validate(
        {"type": "slider", "training_folder": "output", "model": {"name_or_path": "m"}, "network": {},
         "train": {"batch_size": batch_size}, "slider": base | slider} | more
    )  # fmt: skip


def batches(process: SliderProcess, count: int, start: int = 0) -> list:
    items = [item for item, _ in make_items(process, read_slides(process), 8).values()]
    data = make_data(process, items, SPEC, FlowMatching(), seed=3)
    stream = data.stream(start)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


def test_an_epoch_is_every_size_and_both_directions_in_full_batches():
    process = section({"resolutions": [[32, 32], [48, 24]]}, batch_size=3)
    epoch = batches(process, 4)
    assert all(len(batch) == 3 for batch in epoch)
    shapes = [(tuple(batch.noise.shape[1:]), batch.items[0].network_weight) for batch in epoch]
    assert sorted(shapes) == [((4, 6, 12), -1.0), ((4, 6, 12), 1.0), ((4, 8, 8), -1.0), ((4, 8, 8), 1.0)]
    assert all(len({item.network_weight for item in batch.items}) == 1 for batch in epoch)


def test_noise_and_levels_are_keyed_and_change_from_epoch_to_epoch():
    process = section({})
    straight, again, later = batches(process, 6), batches(process, 6), batches(process, 4, start=2)
    assert all(torch.equal(a.noise, b.noise) for a, b in zip(straight, again, strict=True))
    assert all(torch.equal(a.noise, b.noise) for a, b in zip(straight[2:], later, strict=True))
    assert not torch.equal(straight[0].noise, straight[2].noise)
    levels = set(noise_levels(FlowMatching(), 4).tolist())
    seen = {t for batch in batches(process, 40) for t in batch.t.tolist()}
    assert seen == levels


def test_weights_multipliers_and_swapped_ends():
    targets = [
        {"target_class": "a cat", "positive": "old", "weight": 0.5, "multiplier": 2},
        {"target_class": "a dog", "positive": "old", "negative": "young", "multiplier": -1},
    ]
    process = section({"targets": targets})
    slides = read_slides(process)
    assert [(each.positive, each.negative, each.multiplier) for each in slides] == [
        ("old", "", 2.0), ("young", "old", 1.0),
    ]  # fmt: skip
    by_class = {batch.items[0].caption: batch for batch in batches(process, 4)}
    assert by_class["a cat"].weights.tolist() == [0.5, 0.5]
    assert abs(by_class["a cat"].items[0].network_weight) == 2.0


def test_every_line_of_a_prompt_file_joins_every_target(tmp_path: Path):
    file = tmp_path / "phrases.txt"
    file.write_text("in a park\n\n by night \n", encoding="utf-8")
    slides = read_slides(section({"prompt_file": str(file)}))
    assert [slide.target for slide in slides] == ["a cat in a park", "a cat by night"]
    assert slides[1].positive == "a red cat by night"
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no phrase"):
        read_slides(section({"prompt_file": str(file)}))


def test_the_trigger_word_is_put_in_place():
    targets = [{"target_class": "[trigger]", "positive": "old [trigger]"}]
    (slide,) = read_slides(section({"targets": targets}, trigger_word="zwx"))
    assert (slide.target, slide.positive) == ("zwx", "old zwx")


def test_shuffled_targets_are_items_of_their_own():
    targets = [{"positive": "red, large", "negative": "blue", "shuffle": True}]
    process = section({"targets": targets}, batch_size=1)
    assert [slide.positive for slide in read_slides(process)] == ["red, large", "large, red"]
    assert len(make_items(process, read_slides(process), 8)) == 4


def test_a_size_that_the_model_cannot_draw_is_refused():
    process = section({"resolutions": [[36, 32]]})
    with pytest.raises(ConfigError, match="multiples of 8 px"):
        make_items(process, read_slides(process), 8)
