"""Every setting of cuts and masks changes what a run does, from the YAML to the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from testing.job_helpers import outcome
from testing.tiny_models import build_tiny_sd15

pytestmark = pytest.mark.slow

STRONG = {"lr": 1e-2}  # so that four steps move away from the base


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four pictures of 96 x 64 with transparency, masks and points of interest."""
    folder = tmp_path_factory.mktemp("pictures")
    for kind in ("data", "masks"):
        (folder / kind).mkdir()
    for index in range(4):
        image = Image.radial_gradient("L").resize((96, 64)).convert("RGBA")
        image.paste((40 * index, 200, 30, 255), (8 + 16 * index, 8, 40 + 16 * index, 40))
        shown = Image.new("L", (96, 64))
        ImageDraw.Draw(shown).ellipse((4 + 16 * index, 4, 44 + 16 * index, 44), fill=255)
        shown.save(folder / "masks" / f"{index}.png")
        image.putalpha(shown.point(lambda value: 255 - value // 2))
        image.save(folder / "data" / f"{index}.png")
        poi = {"box": {"x": 8 + 16 * index, "y": 8, "width": 16, "height": 16}, "dot": {"x": 1, "y": 1}}
        (folder / "data" / f"{index}.json").write_text(json.dumps({"poi": poi}))
    return folder


@pytest.fixture(scope="module")
def losses(tmp_path_factory, model, data):
    """losses(settings of the dataset, of train): those of the four steps; equal settings are run once."""
    known: dict[str, list[float]] = {}

    def run(dataset: dict[str, Any], train: dict[str, Any] | None = None) -> list[float]:
        key = repr((dataset, train))
        if key not in known:
            own = {"folder_path": str(data / "data"), "resolution": 32, "default_caption": "a box",
                   "cache_latents": True}  # fmt: skip
            if "mask_path" in dataset:
                dataset = dataset | {"mask_path": str(data / dataset["mask_path"])}
            changes = {"datasets": [own | dataset], "train": {"batch_size": 4} | (train or {})}
            known[key] = outcome(tmp_path_factory.mktemp("run"), model, changes)["losses"]
        return known[key]

    return run


MASKED = {"mask_path": "masks"}
CUT = {"random_crop": True, "random_scale": True}
# dataset settings -> the settings they are compared with
COUNT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"random_crop": True}, {}),
    ({"random_scale": True}, {}),
    ({"square_crop": True}, {}),
    ({"scale": 0.25}, {}),
    ({"poi": "box"}, {}),
    ({"poi": "dot"}, {"poi": "box"}),
    (CUT | {"cached_crops": 1}, CUT),
    (CUT | {"scale": 0.5}, CUT),
    ({"buckets": False, "random_crop": True}, {"square_crop": True, "random_crop": True}),
    (MASKED, {}),
    ({"alpha_mask": True}, {}),
    (MASKED | {"invert_mask": True}, MASKED),
    (MASKED | {"mask_min_value": 0.5}, MASKED),
]


@pytest.mark.parametrize(("dataset", "without"), COUNT, ids=[str(row[0]) for row in COUNT])
def test_a_setting_of_pictures_counts(losses, dataset, without):
    assert losses(dataset) != losses(without)


@pytest.mark.parametrize("dataset", [MASKED, MASKED | CUT])
def test_settings_of_the_masked_loss_count(losses, dataset):
    plain = losses(dataset, STRONG)
    whole = losses(dataset, STRONG | {"normalize_masked_loss": False})
    assert whole[0] < plain[0]  # less than all of each picture counts
    held = losses(dataset, STRONG | {"inverted_mask_prior": True})
    assert held[0] == plain[0]  # the network does nothing yet
    assert held[1:] != plain[1:]
    stronger = {"inverted_mask_prior": True, "inverted_mask_prior_multiplier": 4.0}
    assert losses(dataset, STRONG | stronger) != held


def test_cut_anew_each_epoch_without_a_cache_and_in_turn_with_one(losses):
    """One batch an epoch. With a rate of 0 and the same noise only the cut changes the loss."""
    still = {"lr": 0.0, "force_consistent_noise": True, "timestep_type": "one_step"}

    def distinct(**dataset: Any) -> int:
        return len({round(loss, 6) for loss in losses(CUT | dataset, still)})

    assert distinct(cache_latents=False) == 4
    assert distinct(cached_crops=2) == 2
    assert distinct(cached_crops=1) == 1
    cached = losses(CUT, still)
    assert cached == pytest.approx(losses(CUT | {"cache_latents": False}, still), rel=1e-5)
