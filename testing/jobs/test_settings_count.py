"""Nothing is ignored silently: changing a setting changes what is trained, written or told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from testing.job_helpers import outcome
from testing.tiny_models import build_tiny_sd15

pytestmark = pytest.mark.slow

LORA_FILE = "run.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture(scope="module")
def reference(tmp_path_factory, model) -> dict[str, Any]:
    return outcome(tmp_path_factory.mktemp("reference"), model, {})


def dataset(tmp_path: Path, **changes: Any) -> list[dict[str, Any]]:
    return [{"folder_path": str(tmp_path / "data"), "resolution": 32, "cache_latents": True} | changes]


TRAIN = [
    # (key, value, what must differ)
    ("steps", 5, "steps"),
    ("batch_size", 1, "losses"),
    ("gradient_accumulation", 2, "losses"),
    ("gradient_accumulation_steps", 2, "losses"),
    ("lr", 1e-2, "rates"),
    ("unet_lr", 1e-2, "rates"),
    ("optimizer", "sgd", "weights"),
    ("optimizer_params", {"betas": [0.5, 0.9]}, "weights"),
    ("lr_scheduler", "linear", "rates"),
    ("max_grad_norm", 1e-4, "weights"),
    ("dtype", "bf16", "losses"),
    ("timestep_type", "sigmoid", "losses"),
    ("min_snr_gamma", 5.0, "losses"),
    ("loss_type", "mae", "losses"),
    ("train_text_encoder", True, "weights"),
    ("ema_config", {"use_ema": True, "ema_decay": 0.5}, "weights"),
]


@pytest.mark.parametrize(("key", "value", "differs"), TRAIN, ids=[row[0] for row in TRAIN])
def test_a_training_setting_counts(tmp_path, model, reference, key, value, differs):
    changed = outcome(tmp_path, model, {"train": {key: value}})
    assert changed[differs] != reference[differs]


DATASET = [
    ("resolution", 48, "losses"),
    ("resolution", [32, 48], "losses"),
    ("buckets", False, "losses"),
    ("bucket_tolerance", 16, "losses"),
    ("flip_x", True, "losses"),
    ("flip_y", True, "losses"),
    ("num_repeats", 3, "losses"),
    ("loss_multiplier", 0.25, "losses"),
    ("caption_dropout_rate", 1.0, "losses"),
    ("token_dropout_rate", 0.5, "losses"),
    ("random_triggers", ["zqa", "zqb"], "losses"),
    ("replacements", ["disk|ring"], "losses"),
    ("caption_ext", "caption", "losses"),
    ("default_caption", "a circle", None),
    ("trigger_word", "zrb", "losses"),
]


@pytest.mark.parametrize(("key", "value", "differs"), DATASET, ids=[f"{r[0]}-{r[1]}" for r in DATASET])
def test_a_dataset_setting_counts(tmp_path, model, reference, key, value, differs):
    changes = {key: value}
    if key == "default_caption":  # it stands in for missing captions only
        changes["caption_ext"] = ".none"
        without = outcome(tmp_path / "a", model, {"datasets": dataset(tmp_path / "a", caption_ext=".none")})
        given = outcome(tmp_path / "b", model, {"datasets": dataset(tmp_path / "b", **changes)})
        assert given["losses"] != without["losses"]
        return
    changed = outcome(tmp_path, model, {"datasets": dataset(tmp_path, **changes)})
    assert changed[differs] != reference[differs]


OTHERS = [
    ({"network": {"linear": 8}}, "weights"),
    ({"network": {"linear_alpha": 4}}, "losses"),
    ({"network": {"dropout": 0.5}}, "losses"),
    ({"network": {"network_kwargs": {"only_if_contains": ["attn2"]}}}, "norms"),
    ({"network": {"network_kwargs": {"ignore_if_contains": ["attn2"]}}}, "norms"),
    ({"network": {"transformer_only": False}}, "norms"),
    ({"network": None}, "norms"),
    ({"save": {"dtype": "bf16"}}, "dtypes"),
    ({"save": {"save_every": 2}}, "files"),
    ({"training_seed": 8}, "losses"),
    ({"trigger_word": "zrb"}, "losses"),
    ({"trigger_word": "zrb"}, "metadata"),
    ({"train": {"disable_sampling": False}}, "samples"),
    ({"model": {"prediction_type": "v_prediction"}}, "losses"),
    ({"model": {"is_v_pred": True}}, "losses"),
    ({"model": {"prediction_type": "flow"}, "train": {"noise_scheduler": "flowmatch"}}, "losses"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "differs"), OTHERS, ids=[str(row[0]) for row in OTHERS])
def test_another_setting_counts(tmp_path, model, reference, changes, differs):
    assert outcome(tmp_path, model, changes)[differs] != reference[differs]


def test_sampling_settings_count(tmp_path, model):
    def samples(name: str, **changes: Any) -> int:
        folder = tmp_path / name
        return outcome(folder, model, {"train": {"disable_sampling": False} | changes})["samples"]

    assert samples("all") == 2 * 3  # before, at step 2, at the end
    assert samples("not_first", skip_first_sample=True) == 2 * 2


def test_gradient_checkpointing_changes_no_number(tmp_path, model, reference):
    changed = outcome(tmp_path, model, {"train": {"gradient_checkpointing": True}})
    assert changed["losses"] == pytest.approx(reference["losses"], rel=1e-5)


def test_caches_change_no_number(tmp_path, model, reference):
    uncached = outcome(tmp_path / "a", model, {"datasets": dataset(tmp_path / "a", cache_latents=False)})
    assert uncached["losses"] == pytest.approx(reference["losses"], rel=1e-5)
    on_disk = dataset(tmp_path / "b", cache_latents_to_disk=True, cache_text_embeddings=True)
    assert outcome(tmp_path / "b", model, {"datasets": on_disk})["losses"] == reference["losses"]


def test_training_starts_from_a_given_lora(tmp_path, model, reference):
    first = tmp_path / "first"
    outcome(first, model, {"train": {"lr": 5e-2}})
    start = {
        "network": {"pretrained_lora_path": str(first / "out" / "run" / LORA_FILE)},
        "train": {"lr": 0.0},
    }
    again = outcome(tmp_path / "again", model, start)
    one, two = (load_file(folder / "out" / "run" / LORA_FILE) for folder in (first, tmp_path / "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert again["losses"] != reference["losses"]
