"""Trainings of the published sizes on a GPU: predicted and real memory, time of a step and of a whole run.

`python -m testing.benchmarks.bench_gpu [--only sd15-lora ...] [--json FILE]`. Models have random weights and
are written to a temporary folder. Each case is checked with --probe, then run. Exit code 1 if a run fails or
needs more memory than 1.1 times what the probe told.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from testing.benchmarks.full_size import build_full_size
from testing.job_helpers import environment, make_dataset, merged, training_config
from toolkit.paths import ROOT
from toolkit.runs.metrics import read_metrics
from toolkit.text import columns, size

MEMORY_LIMIT = 1.10  # of what the probe told
LEFT_OUT = 5  # first steps, in which kernels are chosen
TIMES = ("step", "step_estimated", "step_probed", "run", "run_estimated", "run_probed")
PEAKS = ("peak", "peak_estimated", "peak_probed")
CHECKPOINTING = {"gradient_checkpointing": True}


@dataclass(frozen=True)
class Case:
    """A job: its architecture, resolution, and what it changes of the usual one."""

    name: str
    arch: str
    resolution: int
    train: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] | None = field(default_factory=lambda: {"type": "lora", "linear": 16})


CASES = [
    Case("sd15-lora", "sd15", 512, {"batch_size": 4}),
    Case("sd15-lora-8bit", "sd15", 512, {"batch_size": 4, "optimizer": "adamw8bit"}),
    Case("sd15-full", "sd15", 512, {"batch_size": 2, "lr": 1e-6}, None),
    Case("sdxl-lora", "sdxl", 1024, {"batch_size": 1} | CHECKPOINTING),
    Case("sdxl-lora-fast", "sdxl", 1024, {"batch_size": 2}),
    Case("flux-lora", "flux", 1024, {"batch_size": 1} | CHECKPOINTING),
]


def write_config(case: Case, root: Path, models: Path, steps: int, device: str) -> Path:
    """The job file of a case, in a folder of its own; its model is made if it is not there."""
    model = models / case.arch
    if not model.exists():
        build_full_size(case.arch, model, device=device)
    folder = root / case.name
    edge = case.resolution
    make_dataset(folder / "data", [(edge, edge)] * 8)
    changes = {
        "device": device,
        "network": case.network,
        "model": {"arch": case.arch},
        "save": {"dtype": "bf16"},
        "datasets": [{"folder_path": str(folder / "data"), "resolution": edge, "cache_latents": True}],
        "train": merged({"steps": steps, "lr": 1e-4, "dtype": "bf16", "disable_sampling": False}, case.train),
        "sample": {
            "sample_every": 0,
            "width": edge,
            "height": edge,
            "sample_steps": 10,
            "prompts": ["a disk"],
        },
    }
    return training_config(folder, model, case.name, **changes)


def command(root: Path, *arguments: str) -> tuple[float, str]:
    """(seconds, standard output) of `python run.py ...`. Raises RuntimeError with its end if it fails."""
    begin = time.perf_counter()
    result = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=root, env=environment(root), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode:
        raise RuntimeError(f"{' '.join(arguments)}:\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
    return time.perf_counter() - begin, result.stdout


def measure(case: Case, root: Path, models: Path, steps: int, device: str) -> dict[str, Any]:
    """What a case was told to need, and what it did."""
    config = write_config(case, root, models, steps, device)
    checked, text = command(root, "--check", "--probe", "--json", str(config))
    found = json.loads(text)["jobs"][0]["processes"][0]["estimate"]
    seconds, _ = command(root, str(config))
    rows = read_metrics(root / case.name / "out" / case.name / "metrics.jsonl")
    return {
        "case": case.name,
        "step": median(row["seconds"] for row in rows[LEFT_OUT:] if "loss" in row),
        "step_estimated": found["seconds_per_step"],
        "step_probed": found["probe"]["wall_seconds_per_step"],
        "run": seconds,
        "run_estimated": found["unprobed_seconds"],
        "run_probed": found["total_seconds"],
        "check": checked,
        "peak": max(row.get("peak_device_bytes", 0) for row in rows),
        "peak_estimated": found["peak_bytes"] - found["memory"].get("program", 0),
        "peak_probed": found["probe"]["peak_device_bytes"],
        "memory": found["memory"],
        "counted": found["probe"]["memory"],
        **{key: found[key] for key in ("time", "measured", "flops_per_second")},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[case.name for case in CASES])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--models", type=Path, help="keep the models in this folder, or take them from it")
    parser.add_argument("--json", type=Path, help="also write all numbers into this file")
    arguments = parser.parse_args(argv)
    device = arguments.device
    if device.startswith("cuda"):
        print(torch.cuda.get_device_name(device), flush=True)
    titles = ["case", *(each for what in ("step", "run", "peak") for each in (what, "estimated", "probed"))]
    table, results, failed = [titles], [], 0
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if case.name not in arguments.only:
                continue
            try:
                root = Path(folder)
                found = measure(case, root, arguments.models or root, arguments.steps, device)
            except RuntimeError as error:
                failed += 1
                print(f"{case.name}: failed: {error}", flush=True)
                continue
            results.append(found)
            failed += found["peak"] > MEMORY_LIMIT * found["peak_probed"]
            times = [f"{found[key]:.3g} s" for key in TIMES]
            table.append([case.name, *times, *(size(found[key]) for key in PEAKS)])
            print("  ".join(table[-1]), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=1))
    print("\n".join(columns(table)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
