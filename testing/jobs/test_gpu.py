"""Jobs on a CUDA device: a CPU's losses, every optimizer and precision, and memory that really ends."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from testing.job_helpers import log, make_dataset, outcome, run_cli, train, training_config
from testing.jobs.test_examples import EXAMPLES, NAMES, shortened
from testing.tiny_models import TINY_BUILDERS, build_tiny_sd15
from toolkit.errors import UserError
from toolkit.runs.metrics import read_metrics
from toolkit.training.optimizers import OPTIMIZERS
from toolkit.training.out_of_memory import free_memory

pytestmark = pytest.mark.gpu

CUDA = "cuda:0"
LARGE = (1024, 1024)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("model") / "sd15")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """The device has room for batches of small pictures and not for those of large ones."""
    free_memory()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 4e8 / total), 0)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, 0)
    free_memory()


@pytest.mark.parametrize("arch", ["sd15", "sdxl", "flux"])
def test_losses_are_those_of_a_cpu(tmp_path: Path, arch: str) -> None:
    model = TINY_BUILDERS[arch](tmp_path / "model")
    changes = {"model": {"arch": arch}, "train": {"ema_config": {"use_ema": True}}}
    found = {}
    for device in ("cpu", CUDA):
        (folder := tmp_path / device.replace(":", "_")).mkdir()
        found[device] = outcome(folder, model, changes | {"device": device})
    for key in ("losses", "norms"):
        assert found[CUDA][key] == pytest.approx(found["cpu"][key], rel=0.01)


@pytest.mark.parametrize("changes", [
    {"train": {"dtype": "fp16"}},
    {"train": {"dtype": "bf16", "gradient_checkpointing": True, "gradient_accumulation": 2}},
    {"train": {"dtype": "bf16"}, "network": None},
    {"train": {"dtype": "fp16"}, "network": {"type": "lokr"}},
    {"train": {"train_text_encoder": True, "dtype": "bf16"}},
], ids=str)  # fmt: skip
def test_precisions_train(tmp_path: Path, model: Path, changes: dict[str, Any]) -> None:
    found = outcome(tmp_path, model, changes | {"device": CUDA})
    assert found["steps"] == 4
    assert all(math.isfinite(loss) for loss in found["losses"])


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_an_optimizer_takes_steps(tmp_path: Path, model: Path, name: str) -> None:
    found = outcome(tmp_path, model, {"device": CUDA, "train": {"optimizer": name, "steps": 2}})
    assert all(math.isfinite(loss) for loss in found["losses"])


@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains(tmp_path: Path, name: str) -> None:
    path = shortened(EXAMPLES[name], tmp_path)
    path.write_text(path.read_text().replace("device: cpu", f"device: {CUDA}"))
    folder = train(path)
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert rows[-1]["peak_device_bytes"] > 0
    assert "memory of the GPU, at most" in (folder / "report.html").read_text()


def test_a_run_that_ended_goes_on(tmp_path: Path, model: Path) -> None:
    path = training_config(tmp_path, model, device=CUDA, save={"save_every": 2})
    train(path)
    changed = path.read_text().replace("steps: 4", "steps: 6")
    path.write_text(changed)
    folder = train(path)
    assert "resuming from step 4" in log(folder)
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("little_memory")
def test_batches_that_do_not_fit_are_left_out_by_name(tmp_path: Path, model: Path) -> None:
    make_dataset(tmp_path / "data", [(64, 64)] * 8 + [LARGE] * 2)
    datasets = [{"folder_path": str(tmp_path / "data"), "resolution": 1024, "cache_latents": True}]
    path = training_config(tmp_path, model, device=CUDA, datasets=datasets, train={"steps": 10})
    folder = train(path)
    assert "no memory for a batch, which is left out" in log(folder)
    assert "disk8.png" in log(folder)


@pytest.mark.usefixtures("little_memory")
def test_when_nothing_fits_remedies_are_named(tmp_path: Path, model: Path) -> None:
    make_dataset(tmp_path / "data", [LARGE] * 12)
    datasets = [{"folder_path": str(tmp_path / "data"), "resolution": 1024, "cache_latents": True}]
    path = training_config(tmp_path, model, device=CUDA, datasets=datasets, train={"batch_size": 4})
    with pytest.raises(UserError, match="memory") as caught:
        train(path)
    assert all(problem.remedy for problem in caught.value.problems)


def test_probe_and_estimate_agree(tmp_path: Path, model: Path) -> None:
    path = training_config(tmp_path, model, device=CUDA, train={"dtype": "bf16"})
    code, text = run_cli(tmp_path, "--check", "--probe", "--json", str(path))
    assert code == 0, text
    found = json.loads(text[text.index("{") :])["jobs"][0]["processes"][0]["estimate"]
    assert found["device"].startswith("cuda")
    counted = found["probe"]["memory"]
    parts = ("weights", "gradients", "optimizer_state", "saved_activations")
    expected = sum(counted[part] for part in parts)
    assert sum(found["memory"][part] for part in parts) == pytest.approx(expected, rel=0.10)
    assert found["probe"]["peak_device_bytes"] > 0


def test_captions_measure_as_on_a_cpu(tmp_path: Path, model: Path) -> None:
    from tools.eval_dataset import main

    make_dataset(tmp_path / "data")
    found = {}
    for device in ("cpu", CUDA):
        out = tmp_path / device.replace(":", "_")
        arguments = f"--dataset-path {tmp_path}/data --model {model} --out-dir {out} --device {device}"
        settings = "--dtype fp32 --eval-resolution 32 --samples-per-image 2"
        assert main([*arguments.split(), *settings.split()]) == 0
        (report,) = out.glob("*.json")
        found[device] = [image["loss"] for image in json.loads(report.read_text())["images"]]
    assert found[CUDA] == pytest.approx(found["cpu"], rel=0.01)
