"""What `--check --estimate` and `--probe` predict, against what ten runs take.

`python -m testing.benchmarks.bench_estimate`. CPU time of the whole process (others' work on the machine does
not count), and bytes of weights, gradients, optimizer state and saved activations, which real steps count
with autograd's hooks. Models of 10 to 60 M weights are written to a temporary folder. --only A B runs some
of the cases.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testing.job_helpers import environment, make_dataset, merged, training_config
from testing.tiny_models import TINY_BUILDERS, edit_json
from toolkit.paths import ROOT
from toolkit.text import columns, size

TIME_LIMIT, MEMORY_LIMIT = 0.15, 0.10
MEMORY = ("weights", "gradients", "optimizer_state", "saved_activations")
LEAST_BYTES = 300 * 10**6
# What is made larger in the configs of toy models.
WIDER: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": ("unet", {"block_out_channels": [192, 512], "norm_num_groups": 32}),
    "sdxl": ("unet", {"block_out_channels": [128, 448], "norm_num_groups": 32}),
    "flux": ("transformer", {"num_attention_heads": 28, "num_layers": 3, "num_single_layers": 6}),
}
ADAMW_LORA = {"type": "lora", "linear": 16}


@dataclass(frozen=True)
class Case:
    """A job: its architecture, and what it changes of the usual one."""

    name: str
    arch: str
    train: dict[str, Any]
    network: dict[str, Any] | None = field(default_factory=lambda: dict(ADAMW_LORA))
    sizes: tuple[tuple[int, int], ...] = ((128, 128),) * 8
    sample: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("sd15-lora", "sd15", {"steps": 16, "batch_size": 4}),
    Case("sd15-lokr-checkpointing", "sd15", {"steps": 14, "batch_size": 4, "gradient_checkpointing": True},
         {"type": "lokr", "linear": 8}),
    Case("sd15-full-ema", "sd15", {"steps": 14, "ema_config": {"use_ema": True}}, None),
    Case("sd15-full-adafactor", "sd15", {"steps": 14, "optimizer": "adafactor"}, None),
    Case("sd15-lora-bf16", "sd15", {"steps": 20, "batch_size": 4, "dtype": "bf16"}),
    Case("sdxl-lora-buckets", "sdxl", {"steps": 16, "batch_size": 3},
         sizes=((128, 128),) * 5 + ((160, 96),) * 4 + ((96, 160),) * 3),
    Case("sdxl-full-prodigy", "sdxl", {"steps": 10, "optimizer": "prodigy", "lr": 1.0}, None),
    Case("sdxl-lora-previews", "sdxl", {"steps": 12, "batch_size": 4, "disable_sampling": False},
         sample={"sample_every": 6, "width": 128, "height": 128, "sample_steps": 4}),
    Case("flux-lora", "flux", {"steps": 12, "batch_size": 2}),
    Case("flux-full-accumulation", "flux", {"steps": 6, "batch_size": 1, "gradient_accumulation": 2}, None),
]  # fmt: skip


def build_model(arch: str, folder: Path) -> Path:
    """A toy model with a wider denoiser."""
    from diffusers import FluxTransformer2DModel, UNet2DConditionModel

    TINY_BUILDERS[arch](folder)
    part, changes = WIDER[arch]
    edit_json(folder / part / "config.json", **changes)
    cls = FluxTransformer2DModel if part == "transformer" else UNet2DConditionModel
    config = json.loads((folder / part / "config.json").read_text())
    cls.from_config(config).save_pretrained(folder / part)
    return folder


def write_config(case: Case, root: Path) -> Path:
    """The job file of a case, in a folder of its own."""
    model = root / case.arch
    if not model.exists():
        build_model(case.arch, model)
    folder = root / case.name
    make_dataset(folder / "data", list(case.sizes))
    changes = {
        "network": case.network,
        "model": {"arch": case.arch},
        "datasets": [{"folder_path": str(folder / "data"), "resolution": 128, "cache_latents": True}],
        "train": merged({"lr": 1e-5}, case.train),
        "sample": case.sample,
    }
    return training_config(folder, model, case.name, **changes)


def command(root: Path, *arguments: str) -> tuple[float, str]:
    """(CPU seconds, standard output) of `python run.py ...`. Raises CalledProcessError if it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments], cwd=root, env=environment(root) | os.environ,
        stdout=subprocess.PIPE, text=True, check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, result.stdout


def measure(case: Case, root: Path) -> dict[str, float]:
    """Predicted and real numbers of a case."""
    config = write_config(case, root)
    _, text = command(root, "--check", "--probe", "--json", str(config))
    found = json.loads(text)["jobs"][0]["processes"][0]["estimate"]
    seconds, _ = command(root, str(config))
    counted = found["probe"]["memory"]
    return {
        "seconds": seconds,
        "estimated": found["unprobed_seconds"] / seconds,
        "probed": found["total_seconds"] / seconds,
        "bytes": sum(counted[part] for part in MEMORY),
        "memory": sum(found["memory"][part] for part in MEMORY) / sum(counted[part] for part in MEMORY),
        "activations": found["memory"]["saved_activations"] / counted["saved_activations"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the cases and print a table; 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[case.name for case in CASES])
    wanted = parser.parse_args(argv).only
    titles = ["case", "CPU s", "--estimate", "--probe", "bytes", "predicted", "activations", ""]
    rows, results = [titles], []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if case.name not in wanted:
                continue
            found = measure(case, Path(folder))
            results.append(found)
            ratios = [f"{found[key]:.3f}" for key in ("estimated", "probed")]
            memory = [size(found["bytes"]), f"{found['memory']:.3f}", f"{found['activations']:.3f}", ""]
            rows.append([case.name, f"{found['seconds']:.1f}", *ratios, *memory])
            print(f"{'  '.join(rows[-1])}", flush=True)
    print("\n".join(columns(rows)))
    for key in ("estimated", "probed"):
        worst = max(abs(found[key] - 1) for found in results)
        middle = statistics.median(found[key] for found in results)
        print(f"CPU time, {key}: median {middle:.3f} of the run's, at most {100 * worst:.0f} % off")
    large = [found for found in results if found["bytes"] >= LEAST_BYTES]
    times = ("estimated", "probed")
    missed = [found for found in results if any(abs(found[key] - 1) > TIME_LIMIT for key in times)]
    missed += [found for found in large if abs(found["memory"] - 1) > MEMORY_LIMIT]
    print(f"{len(large)} of {len(results)} hold at least {size(LEAST_BYTES)}; {len(missed)} limits missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
