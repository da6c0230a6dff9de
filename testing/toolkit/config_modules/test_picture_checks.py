"""Settings of cuts, masks and control pictures that do not go together, or have no effect."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from testing.config_helpers import load, problems_of
from toolkit.models import catalogue


@pytest.fixture(autouse=True)
def folders(folder):
    for name in ("masks", "edges", "depth"):
        (folder / name).mkdir()


def job(*datasets: dict[str, Any], **changes: Any) -> str:
    entry = {
        "type": "sd_trainer", "training_folder": "output", "model": {"name_or_path": "some/model"},
        "datasets": [{"folder_path": "pictures"} | dataset for dataset in datasets],
    } | changes  # fmt: skip
    return yaml.safe_dump({"job": "train", "config": {"name": "run", "process": [entry]}}, sort_keys=False)


VAE = {"type": "vae", "model": {"name_or_path": "tiny-sd"}}
WRONG: list[tuple[list[dict[str, Any]], dict[str, Any], str, str]] = [
    ([{"mask_path": "masks", "alpha_mask": True}], {}, "datasets[0].alpha_mask", "cannot be combined"),
    ([{"mask_path": "pictures"}], {}, "datasets[0].mask_path", "the pictures themselves"),
    ([{"mask_path": "mask"}], {}, "datasets[0].mask_path", "folder mask does not exist"),
    ([{"control_path": ["edges", "edgy"]}], {}, "datasets[0].control_path", "folder edgy does not exist"),
    ([{"control_path": "edges"}], {}, "datasets[0].control_path", "model.arch: sd15 sees none"),
    ([{}, {"control_path_2": "edges"}], {}, "datasets[1].control_path_2", "model.arch: sd15 sees none"),
    ([{"mask_min_value": 2}], {}, "datasets[0].mask_min_value", "at most 1"),
    ([{"cached_crops": 0}], {}, "datasets[0].cached_crops", "at least 1"),
    ([{"scale": 0}], {}, "datasets[0].scale", "above 0"),
    ([{"mask_path": "masks"}], VAE, "datasets[0].mask_path", "learns whole pictures"),
    ([{"control_path_1": "edges"}], VAE, "datasets[0].control_path_1", "learns whole pictures"),
]


@pytest.mark.parametrize(("datasets", "changes", "key", "message"), WRONG)
def test_what_does_not_go_together_is_told(datasets, changes, key, message):
    told = [
        problem.message for problem in problems_of(job(*datasets, **changes)) if problem.key.endswith(key)
    ]
    assert any(message in each for each in told), told


SEEING: list[tuple[list[dict[str, Any]], str, str]] = [
    ([{"control_path": "edges"}, {}], "datasets[1].control_path", "names 0 folders"),
    ([{"control_path": ["edges", "depth"], "control_path_1": "edges"}], "datasets[0].control_path", "sees 2"),
    (
        [{"control_path": "edges"}, {"control_path": "edges", "full_size_control_images": False}],
        "datasets[1].full_size_control_images",
        "cannot share a batch",
    ),
]


@pytest.mark.parametrize(("datasets", "key", "message"), SEEING)
def test_control_pictures_of_a_model_that_sees_some(monkeypatch, datasets, key, message):
    entry = replace(catalogue.ARCHITECTURES["sd15"], num_controls=2)
    monkeypatch.setitem(catalogue.ARCHITECTURES, "sd15", entry)
    [problem] = problems_of(job(*datasets))
    assert problem.key.endswith(key)
    assert message in problem.message
    section = load(job({"control_path": "edges", "control_path_3": "depth"})).config.process[0]
    assert section.datasets[0].control_folders == ["edges", "depth"]


RANDOM = {"random_crop": True, "cache_latents": True}
NOTES: list[tuple[dict[str, Any], str]] = [
    ({"invert_mask": True}, "invert_mask: true has no effect: only counts with mask_path or alpha_mask"),
    ({"mask_min_value": 0.3}, "mask_min_value: 0.3 has no effect"),
    ({"mask_min_value": 0.1}, ""),  # ai-toolkit's interface writes it into every job
    ({"mask_min_value": 0.3, "invert_mask": True, "alpha_mask": True}, ""),
    ({"control_transparent_color": [1, 2, 3]}, "only counts with control_path"),
    ({"full_size_control_images": False}, "only counts with control_path"),
    ({"cached_crops": 2}, "cached_crops: 2 has no effect: only counts with cached latents and random_crop"),
    ({"cached_crops": 2, "random_crop": True}, "cached_crops: 2 has no effect"),
    ({"cached_crops": 2} | RANDOM, ""),
    ({"cached_crops": 2, "poi": "face", "cache_latents_to_disk": True}, ""),
    ({"scale": 0.5}, ""),
    ({"scale": 0.5, "square_crop": True}, "scale: 0.5 has no effect: squares are cut out of all"),
    ({"scale": 0.5, "buckets": False}, "scale: 0.5 has no effect"),
    ({"scale": 0.5, "buckets": False, "random_crop": True}, ""),
    ({"scale": 0.5, "square_crop": True, "random_scale": True}, ""),
    ({"square_crop": True, "buckets": False}, "square_crop: true has no effect: buckets: false"),
    ({"square_crop": True, "buckets": False, "random_crop": True}, ""),
]


@pytest.mark.parametrize(("dataset", "note"), NOTES)
def test_what_has_no_effect_is_said(dataset, note):
    notes = "\n".join(load(job(dataset)).notes)
    assert (note in notes) if note else ("no effect" not in notes), notes


def test_one_folder_of_control_pictures_is_a_list_of_one():
    with pytest.MonkeyPatch.context() as patch:
        entry = replace(catalogue.ARCHITECTURES["sd15"], num_controls=1)
        patch.setitem(catalogue.ARCHITECTURES, "sd15", entry)
        assert load(job({"control_path": "edges"})).config.process[0].datasets[0].control_path == ["edges"]
    assert load(job({"control_path": ""})).config.process[0].datasets[0].control_path == []


def test_a_slider_takes_cuts_and_masks():
    slider = {"type": "concept_slider", "network": {"type": "lora"},
              "train": {"normalize_masked_loss": False},
              "slider": {"target_class": "a", "positive_prompt": "b", "negative_prompt": "c"}}  # fmt: skip
    load(job({"mask_path": "masks", "mask_min_value": 0.2, "cached_crops": 3} | RANDOM, **slider))
