"""Evaluations beside links to what is gone, of lists of pictures, and of long names."""

from __future__ import annotations

import re

import pytest

from testing.web.dataset_kit import make_dataset, report, write_report


@pytest.fixture
def pets(settings):
    """A dataset of two pictures."""
    return make_dataset(settings.datasets_root)


def test_a_link_to_a_lora_that_is_gone_breaks_no_form(client, pets, settings):
    run = settings.output_root / "run"
    run.mkdir(parents=True)
    (run / "gone.safetensors").symlink_to("/nonexistent")
    (run / "there.safetensors").write_bytes(b"")
    form = client.get("/datasets/pets/evaluate")
    assert form.status_code == 200
    assert "there.safetensors" in form.text and "gone.safetensors" not in form.text


def test_a_list_of_pictures_is_no_dataset_here(client, pets, settings):
    (settings.datasets_root / "list.jsonl").write_text("{}")
    body = report(settings.datasets_root / "list.jsonl", {"cat.png": {}})
    path = write_report(settings.output_root / "eval", body, "tool")
    page = client.get("/evaluations/report", params={"path": f"output/eval/tool/{path.name}"})
    assert page.status_code == 200 and "list.jsonl" in page.text
    assert "/datasets/list.jsonl" not in page.text.replace(str(settings.datasets_root), "")


def test_the_worst_is_first_by_every_measure(client, pets, settings):
    images = {"cat.png": {"gain": 1.0}, "dog.png": {"gain": -0.5}}
    body = report(pets, images)
    for image, loss in zip(body["images"], (0.9, 0.1), strict=True):
        image["loss"] = loss
    path = write_report(settings.output_root / "eval", body, "tool")
    where = {"path": f"output/eval/tool/{path.name}"}
    for metric, first in (("loss", "cat.png"), ("log_ratio", "dog.png")):
        page = client.get("/evaluations/report", params=where | {"metric": metric}).text
        assert re.findall(r'class="break">(\w+\.png)', page)[0] == first
