"""Settings of the optimizer and of guidance while training change what a run does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from jobs.base_job import run_job
from testing.job_helpers import outcome, training_config
from testing.tiny_models import build_tiny_sd15
from toolkit.config_modules.loading import load_job
from toolkit.runs.metrics import read_metrics
from toolkit.runs.status import read_status

pytestmark = pytest.mark.slow

STRONG = {"lr": 1e-2}  # so that four steps move away from the base
WHOLE: dict[str, Any] = {"network": None, "save": {"save_format": "diffusers"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture(scope="module")
def ran(tmp_path_factory, model):
    """ran(train settings): what the run left; equal settings are run once."""
    known: dict[str, dict[str, Any]] = {}

    def run(train: dict[str, Any], **more: Any) -> dict[str, Any]:
        key = repr((train, more))
        if key not in known:
            known[key] = outcome(tmp_path_factory.mktemp("run"), model, {"train": train} | more)
        return known[key]

    return run


REX = {"lr_scheduler": "rex"}
LOSSES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # train settings -> those they are compared with
    ({"loss_type": "wavelet"}, {}),
    ({"loss_type": "wavelet", "wavelet_detail": 5.0}, {"loss_type": "wavelet"}),
    ({"pred_scaler": 0.9}, {}),
    ({"match_noise_norm": True}, {}),
    ({"correct_pred_norm": True} | STRONG, STRONG),
    (
        {"correct_pred_norm": True, "correct_pred_norm_multiplier": 0.5} | STRONG,
        {"correct_pred_norm": True} | STRONG,
    ),
    ({"optimal_noise_pairing_samples": 4}, {}),
    ({"do_cfg": True, "cfg_scale": 3.0}, {}),
    ({"do_cfg": True, "cfg_scale": 4.0}, {"do_cfg": True, "cfg_scale": 3.0}),
    ({"do_cfg": True, "cfg_scale": 3.0, "cfg_rescale": 0.7}, {"do_cfg": True, "cfg_scale": 3.0}),
    ({"do_cfg": True, "cfg_scale": 3.0, "negative_prompt": "a box"}, {"do_cfg": True, "cfg_scale": 3.0}),
    ({"do_random_cfg": True, "max_cfg_scale": 3.0}, {"do_cfg": True, "cfg_scale": 3.0}),
    ({"do_random_cfg": True, "max_cfg_scale": 6.0}, {"do_random_cfg": True, "max_cfg_scale": 3.0}),
    ({"do_guidance_loss": True}, {}),
    ({"do_guidance_loss": True, "guidance_loss_target": 2.0}, {"do_guidance_loss": True}),
    ({"do_guidance_loss": True, "guidance_loss_target": [2.0, 4.0]}, {"do_guidance_loss": True}),
    ({"do_guidance_loss": True, "guidance_loss_schedule": "sigma"}, {"do_guidance_loss": True}),
    ({"do_guidance_loss": True, "do_guidance_loss_cfg_zero": True}, {"do_guidance_loss": True}),
    ({"do_guidance_loss": True, "unconditional_prompt": "a box"}, {"do_guidance_loss": True}),
    ({"ema_config": {"use_ema": True, "use_feedback": True}} | STRONG, STRONG),
    ({"ema_config": {"use_ema": True, "param_multiplier": 0.5}} | STRONG, STRONG),
]


@pytest.mark.parametrize(("train", "without"), LOSSES, ids=[str(row[0]) for row in LOSSES])
def test_a_setting_changes_the_losses(ran, train, without):
    assert ran(train)["losses"] != ran(without)["losses"]


RATES: list[tuple[dict[str, Any], list[float]]] = [
    # settings of the schedule -> factors of the rate
    (REX, [1, 0.75 / 0.875, 2 / 3, 0.25 / 0.625]),
    ({"lr_scheduler": "linear", "lr_scheduler_params": {"total_iters": 2}}, [1, 0.5, 0, 0]),
    ({"lr_scheduler": "linear", "lr_scheduler_params": {"min_lr": 5e-4}}, [1, 0.875, 0.75, 0.625]),
    ({"lr_scheduler_params": {"num_warmup_steps": 3}}, [0.25, 0.5, 0.75, 1]),
    ({"lr_scheduler": "cosine_with_restarts", "lr_scheduler_params": {"T_0": 2}}, [1, 0.5, 1, 0.5]),
]


@pytest.mark.parametrize(("train", "factors"), RATES, ids=[str(row[0]) for row in RATES])
def test_a_schedule_sets_the_rates(ran, train, factors):
    assert ran(train)["rates"] == pytest.approx([1e-3 * factor for factor in factors])


def test_an_epoch_can_be_one_step(ran):
    """Three, two and one picture of a bucket, two at a time: the same as four micro-batches a step."""
    epoch = ran({"gradient_accumulation_steps": -1, "steps": 2})
    assert epoch["losses"] == ran({"gradient_accumulation": 4, "steps": 2})["losses"]
    assert epoch["losses"] != ran({"steps": 2})["losses"]


def test_a_new_run_can_begin_after_a_step(ran):
    """It counts on, takes the pictures that would be due, and the schedule's rates."""
    begun = ran({"start_step": 2} | REX)
    assert begun["steps"] == 2
    assert begun["rates"] == pytest.approx(ran(REX)["rates"][2:])
    assert ran({"start_step": 2, "lr": 0.0})["losses"] == ran({"lr": 0.0})["losses"][2:]


def test_the_rate_that_is_found_is_logged_and_shown(tmp_path, model):
    path = training_config(tmp_path, model, "run", train={"optimizer": "prodigy", "lr": 1.0, "steps": 6})
    run_job(load_job(path))
    folder = tmp_path / "out" / "run"
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["lr"] for row in rows] == [1.0] * 6
    found = [row["adapted_lr"] for row in rows]
    assert found[0] <= 1e-5 and found == sorted(found)
    assert read_status(folder / "status.json").lr == found[-1]


def test_of_a_schedule_free_run_the_average_is_saved_and_seen(tmp_path, model):
    """Previews every second step change nothing; the file holds x, the checkpoint the trained y."""

    def run(name: str, **train: Any) -> Path:
        settings = {"optimizer": "adamwschedulefree", "lr": 1e-2, "steps": 4} | train
        run_job(load_job(training_config(tmp_path, model, name, train=settings)))
        return tmp_path / "out" / name

    silent, seen = run("silent"), run("seen", disable_sampling=False)
    one, two = load_file(silent / "silent.safetensors"), load_file(seen / "seen.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)
    weights = load_file(seen / "checkpoints" / "step_000000004" / "weights.safetensors")
    state = load_file(seen / "checkpoints" / "step_000000004" / "optimizer.safetensors")
    trained = sorted(float(tensor.double().norm()) for tensor in weights.values())
    saved = sorted(float(tensor.double().norm()) for name, tensor in two.items() if "alpha" not in name)
    assert len(trained) == len(saved) and trained != pytest.approx(saved, rel=1e-4)
    assert any(name.endswith(".z") for name in state)


@pytest.mark.parametrize("name", ["adamwschedulefree", "prodigy", "muon", "adamw8bit", "came"])
def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path, model, name):
    """Previews and saves in between, as they fall."""
    settings = {
        "train": {"optimizer": name, "lr": 1.0 if name == "prodigy" else 1e-3, "disable_sampling": False},
        "save": {"save_every": 2},
    }
    straight = outcome(tmp_path / "straight", model, settings)
    folder = tmp_path / "stopped"
    folder.mkdir()
    half = settings | {"train": settings["train"] | {"steps": 2}}
    run_job(load_job(training_config(folder, model, "run", **half)))
    assert outcome(folder, model, settings)["weights"] == straight["weights"]


def test_weights_in_bfloat16_learn_resume_and_stay_in_bfloat16(tmp_path, model):
    def run(folder: Path, steps: int, **train: Any) -> Path:
        folder.mkdir(exist_ok=True)
        settings = {"steps": steps, "lr": 1e-5, "dtype": "bf16"} | train
        run_job(load_job(training_config(folder, model, "run", **WHOLE, train=settings)))
        return folder / "out" / "run"

    def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
        return load_file(folder / "checkpoints" / f"step_{step:09d}" / "weights.safetensors")

    kept = run(tmp_path / "kept", 4, full_bf16=True)
    run(tmp_path / "resumed", 2, full_bf16=True)
    resumed = run(tmp_path / "resumed", 4, full_bf16=True)
    last, again = weights(kept, 4), weights(resumed, 4)
    assert {tensor.dtype for tensor in last.values()} == {torch.bfloat16}
    assert all(torch.equal(last[name], again[name]) for name in last)
    begun = weights(resumed, 2)
    assert sum(not torch.equal(last[name], begun[name]) for name in last) > len(last) / 2
    master = run(tmp_path / "master", 4)
    assert {tensor.dtype for tensor in weights(master, 4).values()} == {torch.float32}
    with safe_open(kept / "checkpoints" / "step_000000004" / "optimizer.safetensors", "pt") as file:
        assert file.get_tensor(file.keys()[0]).dtype == torch.float32
    rows = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()[2:]]
    assert all(row["loss"] > 0 for row in rows)
