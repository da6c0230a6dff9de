"""`--check --estimate`: what it predicts against what a run has, and what it leaves alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import build
from jobs.estimate import estimate, sizes_of_epoch
from jobs.look_closer import look_closer
from jobs.preflight import check_files
from jobs.scanning import scan_datasets
from jobs.trained_model import load_trained_model
from testing.job_helpers import run_cli, training_config
from testing.tiny_models import TINY_BUILDERS
from toolkit.config_modules.loading import load_job
from toolkit.config_modules.process import TrainProcess
from toolkit.data.order import EpochOrder
from toolkit.preflight.estimate import TITLES, Estimate

KEYS = {
    "device", "largest", "memory", "flops_per_step", "seconds_per_step", "flops_per_second", "measured",
    "time", "available_bytes", "remedies", "notes", "probe", "unprobed_seconds", "peak_bytes",
    "total_seconds", "fits",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("estimate")


@pytest.fixture(scope="module")
def predict(folder: Path) -> Callable[..., tuple[TrainProcess, Estimate]]:
    """(section, estimate) of a job as changed."""

    def make(arch: str = "sd15", **changes: Any) -> tuple[TrainProcess, Estimate]:
        model = folder / arch
        if not model.exists():
            TINY_BUILDERS[arch](model)
        config = training_config(folder, model, "run", model={"arch": arch}, **changes)
        [section] = load_job(config).config.process
        scan = scan_datasets(section, size_multiple=build.size_multiple(section.model))
        return section, estimate(section, scan.items, budget=0.5)

    return make


def test_parts_of_a_lora_are_exact(predict: Callable[..., tuple[TrainProcess, Estimate]]) -> None:
    section, found = predict(train={"ema_config": {"use_ema": True}})
    trained = load_trained_model(section, build.accelerator(section))
    weights = sum(value.numel() for value in trained.parameters.values())
    whole = sum(p.nbytes for module in trained.model.modules.values() for p in module.parameters())
    buffers = sum(b.nbytes for module in trained.model.modules.values() for b in module.buffers())
    memory = found.memory
    assert memory["trained_weights"] == memory["gradients"] == memory["ema"] == 4 * weights
    assert memory["weights"] == whole + buffers
    assert memory["optimizer_state"] == 2 * 4 * weights + 4 * len(trained.parameters)
    assert found.peak_bytes == sum(memory.values()) - memory["trained_weights"]


@pytest.mark.parametrize("arch", [pytest.param("sdxl", marks=pytest.mark.slow), "flux"])
def test_other_architectures_are_estimated(
    arch: str, predict: Callable[..., tuple[TrainProcess, Estimate]]
) -> None:
    _, found = predict(arch, train={"dtype": "bf16", "disable_sampling": False})
    assert found.memory["saved_activations"] > found.memory["trained_weights"] > 0
    assert {"previews", "training steps", "caching latents"} <= {part.what for part in found.time}
    assert all(part.seconds is not None and part.seconds > 0 for part in found.time)


def test_checkpointing_keeps_less_and_computes_more(
    predict: Callable[..., tuple[TrainProcess, Estimate]],
) -> None:
    _, plain = predict()
    _, checkpointed = predict(train={"gradient_checkpointing": True})
    assert checkpointed.memory["saved_activations"] < 0.7 * plain.memory["saved_activations"]
    assert 1.1 < checkpointed.flops_per_step / plain.flops_per_step < 1.5


@pytest.mark.slow
def test_bfloat16_keeps_about_half_of_the_activations(
    predict: Callable[..., tuple[TrainProcess, Estimate]],
) -> None:
    _, single = predict("flux", network=None)
    _, half = predict("flux", network=None, train={"dtype": "bf16", "full_bf16": True})
    assert half.memory["weights"] == pytest.approx(single.memory["weights"] / 2, rel=0.01)
    assert half.memory["saved_activations"] < 0.8 * single.memory["saved_activations"]
    assert half.memory["optimizer_state"] == single.memory["optimizer_state"]


@pytest.mark.slow
def test_accumulation_multiplies_the_work_of_a_step(
    predict: Callable[..., tuple[TrainProcess, Estimate]],
) -> None:
    _, once = predict()
    _, thrice = predict(train={"gradient_accumulation": 3})
    assert thrice.flops_per_step == pytest.approx(3 * once.flops_per_step, rel=1e-6)
    assert thrice.memory["saved_activations"] == once.memory["saved_activations"]


def test_what_does_not_fit_names_the_cheapest_remedies(
    predict: Callable[..., tuple[TrainProcess, Estimate]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.estimate_rest.available_bytes", lambda device: 10**6)
    _, found = predict()
    assert not found.fits
    assert "train.dtype: bf16" in found.remedies
    assert any(line.startswith("warning: needs") and "bf16" in line for line in found.lines())


def test_sizes_of_an_epoch_count_every_item(folder: Path) -> None:
    config = training_config(folder, folder / "sd15", "sizes")
    [section] = load_job(config).config.process
    items = scan_datasets(section, size_multiple=8).items
    sizes = sizes_of_epoch(EpochOrder(items, 2, 0), items)
    assert sum(size.num_items * number for size, number in sizes.items()) == len(items)
    assert max(sizes).num_items == 2


def test_the_command_reads_no_weights_and_prints_both_forms(folder: Path) -> None:
    model = TINY_BUILDERS["sd15"](folder / "emptied")
    for file in model.rglob("*.safetensors"):
        size = file.stat().st_size
        os.truncate(file, 8 + int.from_bytes(file.read_bytes()[:8], "little"))
        os.truncate(file, size)  # the header stays; all weights are zero
    config = training_config(folder, model, "emptied")
    code, text = run_cli(folder, "--check", "--estimate", str(config))
    assert code == 0, text
    for title in TITLES.values():
        assert title in text
    assert "training steps" in text and "a step:" in text and "--probe" in text
    code, text = run_cli(folder, "--check", "--estimate", "--json", str(config))
    report = json.loads(text)["jobs"][0]["processes"][0]["estimate"]
    assert code == 0 and set(report) == KEYS
    assert set(report["memory"]) == set(TITLES)
    assert not (folder / "out" / "emptied").exists()


def test_real_steps_agree_with_the_shapes_and_leave_nothing(folder: Path) -> None:
    training = {"ema_config": {"use_ema": True}, "gradient_checkpointing": True, "gradient_accumulation": 2}
    config = training_config(folder, folder / "sd15", "probed", train=training)
    before = sorted(folder.rglob("*"))
    [process] = load_job(config).config.process
    scan = scan_datasets(process, size_multiple=build.size_multiple(process.model))
    found = estimate(process, scan.items, budget=0.5, probing=True)
    probed = found.probe
    assert probed is not None and found.unprobed_seconds is not None
    assert sorted(folder.rglob("*")) == before
    for part in ("weights", "trained_weights", "gradients", "optimizer_state", "ema"):
        assert probed.memory[part] == found.memory[part], part
    assert probed.memory["saved_activations"] == pytest.approx(found.memory["saved_activations"], rel=0.1)
    assert probed.seconds_per_step > 0 and probed.peak_device_bytes is None
    [loading] = [part.seconds for part in found.time if part.what == "loading the model"]
    assert loading == probed.loading_seconds
    assert any("probed" in line for line in found.lines())


def test_what_does_not_fit_is_not_probed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.estimate_rest.available_bytes", lambda device: 10**6)
    model = TINY_BUILDERS["sd15"](folder / "large_model")
    [section] = load_job(training_config(folder, model, "large")).config.process
    scan = scan_datasets(section, size_multiple=build.size_multiple(section.model))
    found = estimate(section, scan.items, budget=0, probing=True)
    assert found.probe is None and any("not probed" in note for note in found.notes)


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="torch before 2.8 has no name for it")
def test_a_device_that_fails_is_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_args: object, **_options: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore of it")

    monkeypatch.setattr("jobs.estimate.estimate", lost)
    model = TINY_BUILDERS["sd15"](folder / "lost_model")
    path = str(training_config(folder, model, "lost"))
    (report,) = check_files([path], None, look_closer=look_closer)
    assert report.all_problems == []
    (note,) = [note for note in report.all_notes if note.startswith("no estimate")]
    assert note.endswith("(CUDA error: an illegal memory access was encountered)")


@pytest.mark.slow
def test_a_probe_finds_a_model_that_cannot_be_loaded(folder: Path) -> None:
    model = TINY_BUILDERS["sd15"](folder / "cut")
    (weights,) = (model / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    code, text = run_cli(folder, "--check", "--probe", str(training_config(folder, model, "cut")))
    assert code == 2 and "NOT OK: " in text
    assert any(line.startswith("error: ") and "cannot be loaded" in line for line in text.splitlines())


def test_it_goes_with_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import run

    with pytest.raises(SystemExit):
        run.parse_arguments(["--probe", "x.yml"])
    assert "--check" in capsys.readouterr().err
