"""Optimizers with rates, averages and precisions that do not go together."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from testing.config_helpers import load, problems_of

pytestmark = pytest.mark.usefixtures("folder")

LORA = {"type": "lora", "linear": 4}


def job(train: dict[str, Any], **changes: Any) -> str:
    entry = {
        "type": "sd_trainer", "training_folder": "output", "model": {"name_or_path": "some/model"},
        "datasets": [{"folder_path": "pictures"}], "network": LORA, "train": train,
    }  # fmt: skip
    entry = {key: value for key, value in (entry | changes).items() if value is not None}
    return yaml.safe_dump({"job": "train", "config": {"name": "run", "process": [entry]}}, sort_keys=False)


def train_of(train: dict[str, Any], **changes: Any) -> Any:
    return load(job(train, **changes)).config.process[0].train


@pytest.mark.parametrize(
    ("train", "changes", "key"),
    [
        ({"optimizer": "prodigy", "lr": 1, "unet_lr": 0.5}, {}, "train.unet_lr"),
        ({"optimizer": "dadaptation", "text_encoder_lr": 0.5}, {}, "train.text_encoder_lr"),
        (
            {"optimizer": "prodigy"},
            {"network": LORA | {"network_kwargs": {"loraplus_lr_ratio": 16}}},
            "network_kwargs.loraplus_lr_ratio",
        ),
        ({"optimizer": "prodigy", "lr": 0}, {}, "train.lr"),
        (
            {"optimizer": "adamwschedulefree", "ema_config": {"use_ema": True}},
            {},
            "train.ema_config.use_ema",
        ),
        ({"full_bf16": True, "dtype": "bf16"}, {}, "train.full_bf16"),
        ({"full_bf16": True, "dtype": "fp16"}, {"network": None}, "train.full_bf16"),
        ({"full_bf16": True, "optimizer": "sgdschedulefree"}, {"network": None}, "train.full_bf16"),
        ({"start_step": 10, "steps": 10}, {}, "train.start_step"),
        ({"lr_scheduler": "cosine", "lr_scheduler_params": {"min_lr": 1}}, {}, "lr_scheduler_params.min_lr"),
        ({"optimizer": "sophia"}, {}, "train.optimizer"),
    ],
)
def test_what_does_not_go_together_is_told(train, changes, key):
    [problem] = problems_of(job(train, **changes))
    assert problem.key.endswith(key), problem


@pytest.mark.parametrize("name", ["prodigy", "dadaptation", "DAdaptLion"])
def test_optimizers_that_find_their_rate_take_1_where_none_is_given(name):
    assert train_of({"optimizer": name}).lr == 1.0
    assert train_of({"optimizer": name, "lr": 0.5}).lr == 0.5
    assert train_of({"optimizer": "adamw"}).lr == 1e-6


def test_a_tiny_factor_of_a_rate_that_is_found_is_noted():
    [note] = load(job({"optimizer": "prodigy", "lr": 1e-4})).notes
    assert note.endswith("1 is usual (ai-toolkit takes 1 for every value below 0.1)")
    assert load(job({"optimizer": "prodigy", "lr": 1})).notes == []
    assert load(job({"optimizer": "adamw", "lr": 1e-4})).notes == []


def test_a_falling_rate_is_noted_for_a_schedule_free_optimizer():
    [note] = load(job({"optimizer": "adamwschedulefree", "lr_scheduler": "cosine"})).notes
    assert "is made for a constant rate" in note


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("AdamW8bit", "adamw8bit"), ("adamw8", "adamw8bit"), ("adam8", "adam8bit"), ("Lion", "lion"),
        ("dadaptation", "dadaptadam"), ("dadaptationlion", "dadaptlion"), ("DAdaptAdam", "dadaptadam"),
        ("AdamWScheduleFree", "adamwschedulefree"), ("SCHEDULE_FREE_ADAMW", "adamwschedulefree"),
        ("ADEMAMIX_8BIT", "ademamix8bit"), ("PagedAdamW8bit", "pagedadamw8bit"), ("CAME", "came"),
    ],
)  # fmt: skip
def test_spellings_of_other_programs(written, name):
    assert train_of({"optimizer": written}).optimizer == name
