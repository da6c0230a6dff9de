"""What a training step costs beyond the bare loop.

    python -m testing.benchmarks.bench_step            LoRA in several ways; LoKr

A real job runs in this process: its data, loop, metrics, status file and progress bar. Between blocks of its
steps the same model takes as many steps of the shortest loop that trains it: noise, noising, U-Net, loss,
backward, clipping, AdamW, and EMA and accumulation where the job has them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image, ImageDraw

from jobs import diffusion_run
from jobs.base_job import run_job
from jobs.trained_model import TrainedModel
from testing.benchmarks.measuring import Row, Stopwatch, Times, caches_in, make_row, report
from toolkit.config_modules.loading import load_job
from toolkit.data.items import Batch
from toolkit.training.trainer import Trainer

GOAL = 1.03
NUM_PICTURES = 48  # a multiple of every batch size here
WARM_UP_BLOCKS = 2
DECAY = 0.99
LORA = {"type": "lora", "linear": 8, "linear_alpha": 8}
LOKR = {"type": "lokr", "linear": 8, "linear_alpha": 8}


@dataclass(frozen=True)
class Variant:
    """One kind of run, and what its bare loop has to do as well."""

    name: str
    network: dict[str, Any] = field(default_factory=lambda: LORA)
    train: dict[str, Any] = field(default_factory=dict)
    accumulation: int = 1
    ema: bool = False
    on_disk: bool = False
    batch_size: int | None = None  # as the command line says


VARIANTS = [
    Variant("LoRA"),
    Variant("LoRA, batches of 16", batch_size=16),
    Variant("LoRA, EMA", train={"ema_config": {"use_ema": True, "ema_decay": DECAY}}, ema=True),
    Variant("LoRA, two batches a step", train={"gradient_accumulation": 2}, accumulation=2),
    Variant("LoRA, caches on disk", on_disk=True),
    Variant("LoKr", network=LOKR),
]


def write_job(folder: Path, variant: Variant, arguments: argparse.Namespace) -> Path:
    """A job on pictures drawn here, into `folder`; returns its file."""
    data = folder / "pictures"
    data.mkdir()
    for index in range(NUM_PICTURES):
        picture = Image.new("RGB", (arguments.size, arguments.size), (5 * index, 255 - 5 * index, 128))
        edge = arguments.size * (index + 4) // (NUM_PICTURES + 8)
        ImageDraw.Draw(picture).rectangle((2, 2, edge, edge), fill=(255, 5 * index, 30))
        picture.save(data / f"{index}.png")
        (data / f"{index}.txt").write_text(f"a rectangle, number {index}", encoding="utf-8")
    caches = {"cache_latents": True, "cache_latents_to_disk": variant.on_disk}
    process = {
        "type": "sd_trainer",
        "training_folder": str(folder / "output"),
        "device": arguments.device,
        "network": variant.network,
        "save": {"save_every": 0},
        "logging": {"log_every": arguments.log_every},
        "datasets": [
            {"folder_path": str(data), "resolution": arguments.size, "cache_text_embeddings": variant.on_disk}
            | caches
        ],
        "train": {
            "steps": arguments.blocks * arguments.block,
            "batch_size": variant.batch_size or arguments.batch_size,
            "lr": 1e-4,
            "dtype": arguments.dtype,
            "num_threads": 1,
            "gradient_checkpointing": False,
            "disable_sampling": True,
        }
        | variant.train,
        "model": {"name_or_path": arguments.model},
    }
    job = {"job": "train", "config": {"name": "bench", "process": [process]}}
    path = folder / "bench.yml"
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    return path


class BareLoop:
    """The shortest loop that trains the same weights on one fixed batch."""

    def __init__(self, trained: TrainedModel, batch: Batch, variant: Variant, dtype: torch.dtype) -> None:
        self.device, self.dtype, self.variant = trained.device, dtype, variant
        self.unet = trained.sd.unet
        self.parameters = list(trained.parameters.values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, eps=1e-6, fused=True)
        self.latents = batch.latents.to(self.device)
        self.embeds = batch.conditioning.to(self.device).embeds
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.alphas = (1 - betas).cumprod(0).to(self.device)
        self.shadow = [parameter.detach().clone() for parameter in self.parameters] if variant.ema else []

    def step(self) -> None:
        """One optimizer step."""
        for _ in range(self.variant.accumulation):
            self._backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.shadow:
            torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - DECAY)

    def _backward(self) -> None:
        noise = torch.randn_like(self.latents)
        index = torch.randint(0, 1000, (len(noise),), device=self.device)
        alpha = self.alphas[index].reshape(-1, 1, 1, 1)
        noisy = alpha.sqrt() * self.latents + (1 - alpha).sqrt() * noise
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            prediction = self.unet(noisy, index, self.embeds).sample
        loss = torch.nn.functional.mse_loss(prediction.float(), noise)
        (loss / self.variant.accumulation).backward()


class Interleaved:
    """Stands between the loop and its watcher; after each block of the job the bare loop has two."""

    def __init__(self, watcher: Any, bare: Callable[[], BareLoop], device: torch.device, block: int) -> None:
        self.watcher, self._make_bare, self.block = watcher, bare, block
        self.bare: BareLoop | None = None
        self.ours, self.theirs, self.again = Times(), Times(), Times()
        self.watch = Stopwatch(device)

    def after_step(self, report: Any) -> bool:
        """The watcher's answer; the clock stands still while the bare loop has its turns."""
        end = self.watcher.after_step(report)
        if report.step % self.block == 0:
            self.watch.stop(self.ours, self.block)
            self.bare = self.bare or self._make_bare()
            for times in (self.theirs, self.again):
                self.watch.start()
                for _ in range(self.block):
                    self.bare.step()
                self.watch.stop(times, self.block)
            self.watch.start()
        return end


def measure(variant: Variant, arguments: argparse.Namespace, folder: Path) -> Interleaved:
    """Run the job with the bare loop between its blocks; returns the times of both."""
    seen: dict[str, Any] = {}
    load, loop = diffusion_run.load_trained_model, Trainer.run

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
            lambda: BareLoop(seen["model"], seen["batch"], variant, dtype),
            seen["model"].device,
            arguments.block,
        )
        return loop(trainer, seen["result"])

    diffusion_run.load_trained_model, Trainer.run = keep_model, interleave  # type: ignore[method-assign]
    try:
        run_job(load_job(write_job(folder, variant, arguments)))
    finally:
        diffusion_run.load_trained_model, Trainer.run = load, loop  # type: ignore[method-assign]
    return seen["result"]


def row(variant: Variant, arguments: argparse.Namespace) -> Row:
    """The ratio of one variant, the first blocks left out."""
    with tempfile.TemporaryDirectory() as folder, caches_in(Path(folder) / "cache"):
        result = measure(variant, arguments, Path(folder))
    warm_up = min(WARM_UP_BLOCKS, arguments.blocks - 1)
    for times in (result.ours, result.theirs, result.again):
        del times.cpu[:warm_up], times.wall[:warm_up]
    clock = "wall" if arguments.device.startswith("cuda") else "cpu"
    return make_row(variant.name, result.ours, result.theirs, result.again, clock=clock, goal=GOAL)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; exit code 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny-sd")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=18)
    parser.add_argument("--block", type=int, default=5, help="steps in a block")
    parser.add_argument("--only", help="only variants whose name begins so")
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.blocks, arguments.block = 2, 1
    chosen = [variant for variant in VARIANTS if variant.name.startswith(arguments.only or "")]
    code = report([row(variant, arguments) for variant in chosen])
    return 0 if arguments.quick else code


if __name__ == "__main__":
    sys.exit(main())
