"""What is advised to a job that ran out of memory."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.runs.remedies import MOST, memory_remedies

LEAN = {
    "type": "sd_trainer",
    "network": {"linear": 8},
    "datasets": [{"resolution": 512, "cache_latents_to_disk": True}],
    "train": {"batch_size": 1, "gradient_checkpointing": True, "dtype": "bf16", "optimizer": "adamw8bit"},
}


def changed(section: str, value: Any) -> dict[str, Any]:
    return LEAN | {section: value if section == "datasets" else LEAN[section] | value}


@pytest.mark.parametrize(
    ("section", "value", "advice"),
    [
        ("train", {"gradient_checkpointing": False}, "train.gradient_checkpointing: true"),
        ("train", {"batch_size": 3, "gradient_accumulation_steps": "2"}, "train.gradient_accumulation: 6"),
        ("train", {"dtype": "fp32"}, "train.dtype: bf16"),
        ("train", {"optimizer": "AdamW"}, "adamw8bit"),
        ("datasets", [{"cache_latents": True}], "cache_latents_to_disk: true"),
        ("datasets", [{"resolution": [512, 1024]}], "smaller resolution than 1024"),
        ("network", {"linear": 64}, "network.linear"),
    ],
)
def test_each_setting_that_costs_memory_is_named(section, value, advice):
    (told,) = memory_remedies(changed(section, value))
    assert advice in told


def test_a_lean_job_needs_something_larger():
    assert memory_remedies(LEAN) == ["use a smaller model, or a machine with more memory"]
    assert memory_remedies({"train": None, "datasets": "x"})


def test_the_cheapest_come_first_and_no_more_than_a_few():
    told = memory_remedies(
        changed("train", {"gradient_checkpointing": False, "batch_size": 8, "dtype": "fp32"})
    )
    assert ["gradient_checkpointing" in told[0], "batch_size" in told[1], "dtype" in told[2]] == [True] * 3
    assert len(told) == MOST


def test_previews_are_what_to_change_while_sampling():
    first, second, *_ = memory_remedies(LEAN | {"sample": {"width": 1024, "height": 768}}, "sampling")
    assert "below 1024 x 768" in first
    assert "disable_sampling" in second
