"""Captions of tiny models against transformers used by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from testing.caption_models import save_blip, save_florence, save_qwen
from toolkit.captioning.captioner import FLORENCE_TASK, INSTRUCTION, Captioner, load_captioner
from toolkit.errors import ConfigError, ModelError

CPU = torch.device("cpu")
LENGTH = 8


def pictures(num: int = 3) -> list[Image.Image]:
    draws = numpy.random.default_rng(0)
    return [
        Image.fromarray(draws.integers(0, 255, (40 + 8 * i, 48, 3), dtype=numpy.uint8)) for i in range(num)
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("captioners")
    savers = {"blip": save_blip, "qwen": save_qwen, "florence": save_florence}
    return {name: save(root / name) for name, save in savers.items()}


def load(folder: Path, **options: Any) -> Captioner:
    return load_captioner(str(folder), device=CPU, dtype=torch.float32, max_new_tokens=LENGTH, **options)


def generate(folder: Path, inputs: Any) -> torch.Tensor:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)


@pytest.mark.parametrize("prompt", [None, "red circle"])
def test_blip_says_what_transformers_makes_it_say(models, prompt):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(models["blip"])
    texts = {} if prompt is None else {"text": [prompt] * 3}
    ids = generate(models["blip"], processor(images=pictures(), return_tensors="pt", **texts))
    expected = processor.batch_decode(ids, skip_special_tokens=True)
    assert len(set(expected)) > 1
    assert [each.text for each in load(models["blip"], prompt=prompt).caption(pictures())] == expected


def test_florence_gets_its_task_for_a_long_caption(models):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(models["florence"])
    inputs = processor(images=pictures(), text=[FLORENCE_TASK] * 3, return_tensors="pt", padding=True)
    expected = processor.batch_decode(generate(models["florence"], inputs), skip_special_tokens=True)
    captioner = load(models["florence"])
    assert captioner.prompt == FLORENCE_TASK
    said = captioner.caption(pictures())
    assert [each.text for each in said] == expected and len(set(expected)) == 3
    assert all(each.cut for each in said)  # it is made to end there, which is no end of its own


def by_hand(folder: Path, prompt: str, image: Image.Image) -> str:
    """Qwen2-VL's answer, its inputs built from the two halves of its processor."""
    from transformers import AutoImageProcessor, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen = AutoImageProcessor.from_pretrained(folder)(images=[image], return_tensors="pt")
    pads = "<|image_pad|>" * (int(seen["image_grid_thw"].prod()) // 4)
    asked = f"<|im_start|>user <|vision_start|>{pads}<|vision_end|>{prompt}<|im_end|><|im_start|>assistant"
    ids = tokenizer(asked, return_tensors="pt")["input_ids"]
    kinds = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **seen}
    answer = generate(folder, inputs)[0, ids.shape[1] :]
    return str(tokenizer.decode(answer, skip_special_tokens=True))


@pytest.mark.parametrize("prompt", [None, "describe the star"])
def test_a_chat_is_asked_and_only_its_answer_is_kept(models, prompt):
    expected = [by_hand(models["qwen"], prompt or INSTRUCTION, image) for image in pictures()]
    captioner = load(models["qwen"], prompt=prompt)
    assert [each.text for each in captioner.caption(pictures())] == expected  # sizes differ: padded in front
    assert len(set(expected)) > 1


def test_one_by_one_or_together_is_the_same(models):
    for folder in models.values():
        captioner = load(folder, num_beams=2)
        together = captioner.caption(pictures())
        assert together == [captioner.caption([image])[0] for image in pictures()]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tiny-nothing", "give a folder of transformers, or a hub id such as OWNER/NAME"),
        ("clip", "a model of type clip_text_model does not put pictures into words"),
        ("broken", "config.json"),
    ],
)
def test_what_is_no_captioner_is_refused_in_one_line(tmp_path, name, told):
    from transformers import CLIPTextConfig

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{", encoding="utf-8")
    CLIPTextConfig().save_pretrained(tmp_path / "clip")
    named = str(tmp_path / name) if (tmp_path / name).exists() else name
    with pytest.raises(ModelError) as error:
        load(Path(named))
    (problem,) = error.value.problems
    assert (problem.code, problem.key) == ("model.load", "model")
    assert told in str(problem) and "\n" not in str(problem)


def test_a_file_that_was_not_loaded_whole_is_refused(tmp_path):
    folder = save_blip(tmp_path / "blip")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="model"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "prompt"), [("florence", "describe <CAPTION>"), ("qwen", "a <|image_pad|> b")]
)
def test_a_prompt_that_a_model_does_not_take_is_one_line(models, name, prompt):
    with pytest.raises(ConfigError, match="prompt: the model does not take it"):
        load(models[name], prompt=prompt).caption(pictures(1))


def test_an_answer_is_no_longer_than_a_model_has_places(models):
    long = load_captioner(str(models["blip"]), device=CPU, dtype=torch.float32, max_new_tokens=500)
    assert long.caption(pictures(1))
    with pytest.raises(ConfigError, match="prompt: .* tokens, and the model has places for 64"):
        load(models["blip"], prompt="red " * 100).caption(pictures(1))
