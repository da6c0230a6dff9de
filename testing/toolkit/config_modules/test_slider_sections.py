"""The sections of sliders: what they read, what they refuse, what they say they do not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from testing.config_helpers import load, problems_of
from toolkit.config_modules.process import ConceptSliderProcess, SliderProcess
from toolkit.config_modules.slider import MAX_PERMUTATIONS, SliderTarget
from toolkit.errors import Problem

pytestmark = pytest.mark.usefixtures("folder")


def text_of(job: str = "train", **changes: Any) -> str:
    """A slider's job; concept_slider if it has datasets."""
    kind = "concept_slider" if "datasets" in changes else "slider"
    base = {"type": kind, "training_folder": "output", "model": {"name_or_path": "some/model"}, "network": {}}
    entry = {k: v for k, v in (base | changes).items() if v is not None}
    return yaml.safe_dump({"job": job, "config": {"name": "run", "process": [entry]}}, sort_keys=False)


def concept(job: str = "extension", **changes: Any) -> str:
    slider = {"positive_prompt": "old", "negative_prompt": "young", "target_class": "a person"}
    return text_of(job, **({"datasets": [{"folder_path": "pictures"}], "slider": slider} | changes))


def text(job: str = "train", **changes: Any) -> str:
    return text_of(job, **({"slider": {"targets": [{"positive": "old", "negative": "young"}]}} | changes))


def only(config: str) -> Problem:
    (problem,) = problems_of(config)
    return problem


@pytest.mark.parametrize("job", ["train", "extension"])
def test_both_are_known_in_both_spellings_of_the_job(job):
    one, two = load(concept(job)).config.process[0], load(text(job)).config.process[0]
    assert isinstance(one, ConceptSliderProcess)
    assert (one.slider.guidance_strength, one.slider.anchor_strength, one.slider.anchor_class) == (3, 1, None)
    assert isinstance(two, SliderProcess)
    assert two.slider.resolutions == [(512, 512)]
    assert (two.slider.targets[0].multiplier, two.slider.targets[0].weight) == (1, 1)
    assert two.slider.batch_full_slide and two.slider.max_denoising_steps == 50
    assert one.slider.sample_multipliers == [-2, -1, 0, 1, 2]


@pytest.mark.parametrize("make", [concept, text])
def test_a_slider_is_a_network(make):
    problem = only(make(network=None))
    assert (problem.code, problem.key) == ("config.missing_key", "network")


@pytest.mark.parametrize("make", [concept, text])
def test_without_the_section_there_is_nothing_to_slide(make):
    problem = only(make(slider=None))
    assert (problem.code, problem.key) == ("config.missing_key", "slider")


def test_the_two_ends_must_differ():
    problem = only(concept(slider={"positive_prompt": "old", "negative_prompt": " old"}))
    assert problem.key == "slider" and "positive_prompt and negative_prompt: must differ" in problem.message
    problem = only(text(slider={"targets": [{"target_class": "a person"}]}))
    assert problem.key == "slider.targets[0]" and "must differ" in problem.message


def test_a_target_without_strength_is_refused():
    problem = only(text(slider={"targets": [{"positive": "old", "multiplier": 0}]}))
    assert "multiplier: must not be 0" in problem.message


@pytest.mark.parametrize(
    ("make", "changes", "key"),
    [
        (concept, {"train": {"loss_type": "mae"}}, "train.loss_type"),
        (concept, {"train": {"min_snr_gamma": 5}}, "train.min_snr_gamma"),
        (text, {"train": {"min_snr_gamma": 5}}, "train.min_snr_gamma"),
        (text, {"datasets": [{"folder_path": "pictures"}], "type": "slider"}, "datasets"),
        (text, {"slider": {"targets": [{"positive": "old"}], "prompt_tensors": 1}}, "slider.prompt_tensors"),
        (text, {"slider": {"targets": [{"positive": "old"}], "low_ram": True}}, "slider.low_ram"),
        (text, {"slider": {"targets": [{"positive": "old"}], "prompt_file": "no.txt"}}, "slider.prompt_file"),
        (text, {"slider": {"targets": []}}, "slider.targets"),
        (text, {"slider": {"targets": [{"positive": "old"}], "guidance_strength": 0}},
         "slider.guidance_strength"),
    ],
)  # fmt: skip
def test_what_means_nothing_or_cannot_be_is_refused_by_name(make, changes, key):
    assert only(make(**changes)).key == key


def test_a_density_of_noise_levels_is_refused_where_a_path_gives_them():
    assert "path" in only(text(train={"timestep_type": "sigmoid"})).message
    assert (
        load(concept(train={"timestep_type": "sigmoid"})).config.process[0].train.timestep_type == "sigmoid"
    )


def test_ai_toolkits_name_for_the_length_of_the_path():
    process = load(text(train={"max_denoising_steps": 40})).config.process[0]
    assert process.slider.max_denoising_steps == 40


def test_captions_of_a_sliders_pictures_are_not_read_and_that_is_said():
    loaded = load(concept(datasets=[{"folder_path": "pictures", "caption_dropout_rate": 0.1}]))
    assert any("caption_dropout_rate" in note and "not from captions" in note for note in loaded.notes)


def test_one_size_may_be_written_without_a_list():
    targets = [{"positive": "old"}]
    process = load(text(slider={"targets": targets, "resolutions": [512, 768]})).config.process[0]
    assert process.slider.resolutions == [(512, 768)]


def test_shuffled_ends_are_all_orders_while_they_are_few():
    target = SliderTarget(positive="a, b, c", negative="x, y", shuffle=True)
    assert sorted({positive for positive, _ in target.ends()}) == [
        "a, b, c", "a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a",
    ]  # fmt: skip
    assert {negative for _, negative in target.ends()} == {"x, y", "y, x"}
    assert SliderTarget(positive="a, b", negative="c").ends() == [("a, b", "c")]
    many = SliderTarget(positive="a, b, c, d, e", shuffle=True).ends()
    assert len(set(many)) == MAX_PERMUTATIONS and many[0] == ("a, b, c, d, e", "")
    assert many == SliderTarget(positive="a, b, c, d, e", shuffle=True).ends()


def test_prompts_of_a_file_are_found_where_the_job_says(folder: Path):
    (folder / "phrases.txt").write_text("in a park\n", encoding="utf-8")
    slider = {"targets": [{"positive": "old"}], "prompt_file": str(folder / "phrases.txt")}
    assert load(text(slider=slider)).config.process[0].slider.prompt_file
