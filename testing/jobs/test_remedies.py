"""What would need less memory: only what is not set yet, the cheapest first."""

from jobs.remedies import memory_remedies, policies
from testing.job_helpers import training_config
from toolkit.config_modules.loading import load_job


def section(tmp_path, **changes):
    return load_job(training_config(tmp_path, tmp_path / "model", "job", **changes)).config.process[0]


def test_what_is_set_already_is_not_proposed(tmp_path):
    first = memory_remedies(section(tmp_path))
    assert first == [
        "train.dtype: bf16", "train.gradient_checkpointing: true",
        "train.batch_size: 1 with gradient_accumulation: 2", "train.optimizer: adamw8bit",
        "a smaller datasets.resolution",
    ]  # fmt: skip
    saving = {"dtype": "bf16", "gradient_checkpointing": True, "batch_size": 1, "optimizer": "sgd"}
    assert memory_remedies(section(tmp_path, train=saving)) == ["a smaller datasets.resolution"]


def test_a_smaller_batch_keeps_the_pictures_of_a_step(tmp_path):
    found = memory_remedies(section(tmp_path, train={"batch_size": 5, "gradient_accumulation": 3}))
    assert "train.batch_size: 2 with gradient_accumulation: 8" in found
    whole = memory_remedies(section(tmp_path, train={"batch_size": 4, "gradient_accumulation": -1}))
    assert "train.batch_size: 2" in whole


def test_a_whole_model_is_told_of_adapters_and_uncached_latents_of_the_cache(tmp_path):
    data = [{"folder_path": str(tmp_path / "data"), "resolution": 32}]
    found = memory_remedies(section(tmp_path, network=None, datasets=data))
    assert "cache_latents_to_disk: true" in found and "a network (LoRA) instead of the whole model" in found


def test_the_policy_is_the_configs(tmp_path):
    assert not policies(section(tmp_path)).roll_back
    assert policies(section(tmp_path, train={"on_non_finite": "rollback"})).roll_back
