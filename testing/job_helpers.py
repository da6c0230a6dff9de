"""Small jobs for tests: a dataset of a few pictures, and configs around a tiny model."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from toolkit.paths import ROOT

SIZES = [(32, 32), (32, 32), (48, 24), (24, 48), (32, 32), (48, 24)]


def make_dataset(folder: Path, sizes: list[tuple[int, int]] = SIZES) -> Path:
    """Pictures of coloured disks with captions; equal on every call."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (width, height) in enumerate(sizes):
        image = Image.new("RGB", (width, height), (40 * index, 255 - 40 * index, 128))
        ImageDraw.Draw(image).ellipse((4, 4, width - 4, height - 4), fill=(255, 40 * index, 30))
        image.save(folder / f"disk{index}.png")
        (folder / f"disk{index}.txt").write_text(f"a disk number {index}", encoding="utf-8")
    return folder


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, section by section; a None removes a key."""
    result = dict(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def training_config(tmp_path: Path, model_path: Path, name: str = "run", /, **changes: Any) -> Path:
    """Write a LoRA job of a few steps, changed as asked; returns its file."""
    process = {
        "type": "sd_trainer",
        "training_folder": str(tmp_path / "out"),
        "training_seed": 7,
        "device": "cpu",
        "network": {"type": "lora", "linear": 4, "linear_alpha": 2},
        "save": {"save_every": 0, "dtype": "fp32"},
        "logging": {"log_every": 1},
        "datasets": [{"folder_path": str(tmp_path / "data"), "resolution": 32, "cache_latents": True}],
        "train": {
            "steps": 4, "batch_size": 2, "lr": 1e-3, "optimizer": "adamw", "dtype": "fp32",
            "gradient_checkpointing": False, "num_threads": 1, "disable_sampling": True,
        },
        "model": {"name_or_path": str(model_path)},
        "sample": {"sampler": "ddim", "sample_every": 2, "width": 32, "height": 32, "sample_steps": 2,
                   "prompts": ["a disk", "a box"]},
    }  # fmt: skip
    if not (tmp_path / "data").exists():
        make_dataset(tmp_path / "data")
    config = {
        "job": "extension",
        "config": {"name": name, "process": [merged(process, changes)]},
        "meta": {"by": "test"},
    }
    path = tmp_path / f"{name}.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def outcome(tmp_path: Path, model: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """What a run of `training_config` left: its losses, rates, weights and file names."""
    from safetensors.torch import load_file

    from jobs.base_job import run_job
    from toolkit.config_modules.loading import load_job
    from toolkit.metadata import read_metadata
    from toolkit.runs.metrics import read_metrics

    loaded = load_job(training_config(tmp_path, model, "run", **changes))
    run_job(loaded)
    folder = tmp_path / "out" / "run"
    rows = read_metrics(folder / "metrics.jsonl")
    file = folder / "run.safetensors"
    weights = load_file(file) if file.is_file() else {}
    return {
        "steps": len(rows),
        "losses": [row["loss"] for row in rows],
        "rates": [row["lr"] for row in rows],
        "norms": [row["grad_norm"] for row in rows],
        "weights": {name: tensor.double().sum().item() for name, tensor in weights.items()},
        "dtypes": {str(tensor.dtype) for tensor in weights.values()},
        "metadata": read_metadata(file) if file.is_file() else {},
        "files": sorted(path.name for path in folder.iterdir()),
        "samples": len(list((folder / "samples").iterdir())),
    }


def train(path: Path) -> Path:
    """Run a job in this process; returns its run folder."""
    from jobs.base_job import run_job
    from toolkit.config_modules.loading import load_job

    loaded = load_job(path)
    run_job(loaded)
    return Path(loaded.config.process[0].training_folder) / loaded.config.name


def log(folder: Path) -> str:
    """What a run said."""
    return (folder / "log.txt").read_text(encoding="utf-8")


def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a job's subprocess: one thread, no network, caches of its own."""
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    return os.environ | own


def start_job(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python run.py ...` in the background; stdout holds stderr too."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *map(str, arguments)], cwd=tmp_path, env=environment(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run_cli(tmp_path: Path, *arguments: str, timeout: float = 240) -> tuple[int, str]:
    """(exit code, everything printed) of `python run.py ...`."""
    process = start_job(tmp_path, *arguments)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], timeout: float = 120) -> None:
    """Wait for something a job does; fails with its output if it ends or takes too long."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the job ended or hung:\n{process.communicate()[0]}")
        time.sleep(0.02)
