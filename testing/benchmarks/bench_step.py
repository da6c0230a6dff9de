"""What a training step costs beyond the bare loop: `make bench`.

A real LoRA job runs in this process: its data, loop, metrics, status file and progress bar. Between blocks
of its steps the same model takes as many steps of the shortest loop that trains it: noise, noising, U-Net,
loss, backward, clipping, AdamW. Both see the same weather; neighbouring blocks are compared.

Measured is the CPU time of the whole process, threads included, as other processes disturb it least, and
beside it the time on the clock; on a GPU only the latter means anything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import yaml
from PIL import Image, ImageDraw

from jobs.base_job import run_job
from jobs.process import sd_trainer
from jobs.trained_model import TrainedModel
from toolkit.config_modules.loading import load_job
from toolkit.data.items import Batch
from toolkit.training.trainer import Trainer

GOAL = 1.03
NUM_PICTURES = 24
WARM_UP_BLOCKS = 2


def write_job(folder: Path, arguments: argparse.Namespace) -> Path:
    """A LoRA job on pictures drawn here, into `folder`; returns its file."""
    data = folder / "pictures"
    data.mkdir()
    for index in range(NUM_PICTURES):
        picture = Image.new("RGB", (arguments.size, arguments.size), (10 * index, 255 - 10 * index, 128))
        edge = arguments.size * (index + 4) // (NUM_PICTURES + 8)
        ImageDraw.Draw(picture).rectangle((2, 2, edge, edge), fill=(255, 10 * index, 30))
        picture.save(data / f"{index}.png")
        (data / f"{index}.txt").write_text(f"a rectangle, number {index}", encoding="utf-8")
    process = {
        "type": "sd_trainer",
        "training_folder": str(folder / "output"),
        "device": arguments.device,
        "network": {"type": "lora", "linear": 8, "linear_alpha": 8},
        "save": {"save_every": 0},
        "logging": {"log_every": arguments.log_every},
        "datasets": [{"folder_path": str(data), "resolution": arguments.size, "cache_latents": True}],
        "train": {
            "steps": arguments.blocks * arguments.block,
            "batch_size": arguments.batch_size,
            "lr": 1e-4,
            "dtype": arguments.dtype,
            "gradient_checkpointing": False,
            "disable_sampling": True,
        },
        "model": {"name_or_path": arguments.model},
    }
    job = {"job": "train", "config": {"name": "bench", "process": [process]}}
    path = folder / "bench.yml"
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    return path


class BareLoop:
    """The shortest loop that trains the same weights on one fixed batch."""

    def __init__(self, trained: TrainedModel, batch: Batch, dtype: torch.dtype) -> None:
        self.device, self.dtype = trained.device, dtype
        self.unet = trained.sd.unet
        self.parameters = list(trained.parameters.values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, eps=1e-6, fused=True)
        self.latents = batch.latents.to(self.device)
        self.embeds = batch.conditioning.to(self.device).embeds
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.alphas = (1 - betas).cumprod(0).to(self.device)

    def step(self) -> None:
        """One optimizer step."""
        noise = torch.randn_like(self.latents)
        index = torch.randint(0, 1000, (len(noise),), device=self.device)
        alpha = self.alphas[index].reshape(-1, 1, 1, 1)
        noisy = alpha.sqrt() * self.latents + (1 - alpha).sqrt() * noise
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            prediction = self.unet(noisy, index, self.embeds).sample
        loss = torch.nn.functional.mse_loss(prediction.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@dataclass
class Times:
    """Seconds per step of every block: CPU time of the process, and time on the clock."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


class Stopwatch:
    """Times blocks of steps; waits for the device at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        """Begin a block."""
        self._wait()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self, times: Times, steps: int) -> None:
        """End a block of that many steps."""
        self._wait()
        times.cpu.append((time.process_time() - self._cpu) / steps)
        times.wall.append((time.perf_counter() - self._wall) / steps)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Interleaved:
    """Stands between the loop and its watcher; after each block of the job the bare loop has one."""

    def __init__(self, watcher: Any, bare: Callable[[], BareLoop], device: torch.device, block: int) -> None:
        self.watcher, self._make_bare, self.block = watcher, bare, block
        self.bare: BareLoop | None = None
        self.ours, self.theirs = Times(), Times()
        self.watch = Stopwatch(device)

    def after_step(self, report: Any) -> bool:
        """The watcher's answer; the clock stands still while the bare loop has its turn."""
        end = self.watcher.after_step(report)
        if report.step % self.block == 0:
            self.watch.stop(self.ours, self.block)
            self.bare = self.bare or self._make_bare()
            self.watch.start()
            for _ in range(self.block):
                self.bare.step()
            self.watch.stop(self.theirs, self.block)
            self.watch.start()
        return end


def measure(arguments: argparse.Namespace, folder: Path) -> Interleaved:
    """Run the job with the bare loop between its blocks; returns the times of both."""
    seen: dict[str, Any] = {}
    load, loop = sd_trainer.load_trained_model, Trainer.run

    def keep_model(*parts: Any) -> TrainedModel:
        seen["model"] = load(*parts)
        return seen["model"]

    def interleave(trainer: Trainer, watcher: Any) -> bool:
        losses = trainer.losses

        def keep_batch(batch: Batch) -> Any:
            seen["batch"] = batch
            return losses(batch)

        trainer.losses = keep_batch
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[arguments.dtype]
        seen["result"] = Interleaved(
            watcher,
            lambda: BareLoop(seen["model"], seen["batch"], dtype),
            seen["model"].device,
            arguments.block,
        )
        return loop(trainer, seen["result"])

    sd_trainer.load_trained_model, Trainer.run = keep_model, interleave  # type: ignore[method-assign]
    try:
        run_job(load_job(write_job(folder, arguments)))
    finally:
        sd_trainer.load_trained_model, Trainer.run = load, loop  # type: ignore[method-assign]
    return seen["result"]


def summary(result: Interleaved) -> dict[str, float]:
    """Medians over the blocks in milliseconds per step, and ratios as medians over pairs of neighbours."""
    found = {}
    for clock in ("cpu", "wall"):
        ours = getattr(result.ours, clock)[WARM_UP_BLOCKS:]
        bare = getattr(result.theirs, clock)[WARM_UP_BLOCKS:]
        found[f"{clock}_ms"] = 1000 * statistics.median(ours)
        found[f"{clock}_bare_ms"] = 1000 * statistics.median(bare)
        found[f"{clock}_ratio"] = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    return {key: round(value, 4) for key, value in found.items()}


def main(argv: list[str] | None = None) -> int:
    """Measure and print; exit code 1 if the ratio is far above the goal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny-sd")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=22)
    parser.add_argument("--block", type=int, default=10, help="steps in a block")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = summary(measure(arguments, Path(folder)))
    clock = "wall" if arguments.device.startswith("cuda") else "cpu"
    print(json.dumps(found))
    print(
        f"step {found[f'{clock}_ms']:.1f} ms, bare loop {found[f'{clock}_bare_ms']:.1f} ms: "
        f"{found[f'{clock}_ratio']:.3f} x (goal {GOAL} x)"
    )
    return 0 if found[f"{clock}_ratio"] <= GOAL + 0.07 else 1


if __name__ == "__main__":
    sys.exit(main())
