"""How long a start takes whose caches are filled: ten thousand pictures against ten.

    python -m testing.benchmarks.bench_warm_start

Each start is a process of its own that runs a real job (LoRA, latents and captions cached on disk) up to
the end of its first step. The caches are filled beforehand with tensors of the right shapes instead of what
the models make of the pictures, as nothing but their number and size matters here. Told are seconds from
the start of the process, those of them spent on data (scanning, caches, order, first batch), and the peak
of resident memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GOAL, GOAL_MB = 1.5, 200.0
MEASURED = ("seconds", "cpu_seconds", "data_seconds", "data_cpu_seconds", "peak_mb")


def draw_pictures(folder: Path, count: int) -> None:
    """Small JPEGs of three shapes with a caption each; no two are the same."""
    from PIL import Image

    folder.mkdir()
    for index in range(count):
        size = ((40, 40), (56, 40), (40, 56))[index % 3]
        picture = Image.new("RGB", size, (index % 256, index // 256 % 256, index // 65536))
        picture.putpixel((index % 40, 3), (255, 255, 255))
        picture.save(folder / f"{index:06d}.jpg", quality=95)
        text = f"a picture of thing number {index}, [trigger] on a plain background"
        (folder / f"{index:06d}.txt").write_text(text, encoding="utf-8")
    before = time.time() - 60  # files as young as these would not be trusted to keep their time
    for path in folder.iterdir():
        os.utime(path, (before, before))


def write_job(folder: Path, name: str, count: int) -> Path:
    """A job over `count` pictures drawn here; returns its file."""
    import yaml

    draw_pictures(folder / name, count)
    caches = {"cache_latents_to_disk": True, "cache_text_embeddings": True}
    process = {
        "type": "sd_trainer",
        "training_folder": str(folder / "output"),
        "device": "cpu",
        "trigger_word": "zwx",
        "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
        "save": {"save_every": 0},
        "datasets": [{"folder_path": str(folder / name), "resolution": 32} | caches],
        "train": {"steps": 1, "batch_size": 1, "dtype": "fp32", "disable_sampling": True},
        "model": {"name_or_path": "tiny-sd"},
    }
    path = folder / f"{name}.yml"
    job = {"job": "train", "config": {"name": name, "process": [process]}}
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    return path


def fill_caches(job: Path) -> None:
    """Scan as the job does, and cache something of the right shape for every picture and caption."""
    import torch

    from jobs import build
    from jobs.scanning import scan_datasets
    from toolkit.config_modules.loading import load_job
    from toolkit.data.caption_draws import possible_captions
    from toolkit.data.latent_cache import LatentCache
    from toolkit.data.prompt_cache import PromptCache
    from toolkit.paths import cache_root

    [section] = load_job(job).config.process
    items = scan_datasets(section, size_multiple=build.size_multiple(section.model)).items
    model = build.load_model(section.model, dtype=torch.float32, device=torch.device("cpu")).architecture
    latents = LatentCache(cache_root() / "latents", model.vae_hash)
    for item in items:
        latents.put(item, torch.randn(model.latent_spec.shape(item.bucket.height, item.bucket.width)))
    prompts = PromptCache(cache_root() / "prompts", model.text_encoder_hash)
    conditioning = model.encode_prompts(["a picture"])
    for text in possible_captions(items, build.seed(section)):
        prompts.put(text, conditioning)


def peak_megabytes() -> float:
    """The most resident memory that this process has had."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:  # no Linux; there it also counts what the parent had when it forked
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            2**20 if sys.platform == "darwin" else 2**10
        )
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def start_once(job: Path, born: float) -> None:
    """Run the job to the end of its first step and print what it took since `born`; then leave at once."""
    gc.disable()  # as run.py does while it imports these
    import run as program
    from jobs.process import sd_trainer
    from toolkit.training.trainer import Trainer

    gc.enable()
    spent = [0.0, 0.0]

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            made = work(*args, **options)
            spent[0] += time.perf_counter() - wall
            spent[1] += time.process_time() - cpu
            return made

        return run

    def first_step(trainer: Trainer, watcher: Any) -> bool:
        batch = counted(next)(trainer.batches)
        if batch.latents is None or batch.conditioning is None:
            raise AssertionError("the caches were not used")
        trainer.batches = iter([batch])
        trainer.train_step()
        values = (time.time() - born, time.process_time(), *spent, peak_megabytes())
        print("\n" + json.dumps(dict(zip(MEASURED, values, strict=True))), flush=True)
        os._exit(0)

    sd_trainer.scan_datasets = counted(sd_trainer.scan_datasets)
    sd_trainer.prepare_data = counted(sd_trainer.prepare_data)
    Trainer.run = first_step  # type: ignore[method-assign]
    program.main([str(job)])


def measure_start(job: Path, folder: Path) -> dict[str, float]:
    """One start in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", __spec__.name, "--start", str(job), "--born", str(time.time())]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the start failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def summarise(small: list[dict[str, float]], large: list[dict[str, float]]) -> dict[str, float]:
    """Medians of both, the ratio of neighbouring starts, and what is more in megabytes."""
    found = {}
    for name in MEASURED:
        found[f"small_{name}"] = statistics.median(start[name] for start in small)
        found[f"large_{name}"] = statistics.median(start[name] for start in large)
    for name in ("seconds", "cpu_seconds"):
        found[f"ratio_{name}"] = statistics.median(
            b[name] / a[name] for a, b in zip(small, large, strict=True)
        )
    found["more_mb"] = found["large_peak_mb"] - found["small_peak_mb"]
    return {name: round(value, 3) for name, value in found.items()}


def main(argv: list[str] | None = None) -> int:
    """Measure and print; exit code 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--born", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.start is not None:
        start_once(arguments.start, arguments.born)
        return 1  # it leaves on its own
    if arguments.quick:
        arguments.pictures, arguments.rounds = 30, 1

    from testing.benchmarks.measuring import caches_in

    starts: dict[str, list[dict[str, float]]] = {"small": [], "again": [], "large": []}
    with tempfile.TemporaryDirectory() as temporary, caches_in(Path(temporary) / "cache"):
        folder = Path(temporary)
        jobs = {
            "small": write_job(folder, "small", 10),
            "large": write_job(folder, "large", arguments.pictures),
        }
        for job in jobs.values():
            fill_caches(job)
        for _ in range(arguments.rounds):
            for name, known in starts.items():
                known.append(measure_start(jobs["large" if name == "large" else "small"], folder))
    found = summarise(starts["small"], starts["large"])
    control = summarise(starts["small"], starts["again"])["ratio_seconds"]
    reached = found["ratio_seconds"] <= GOAL and found["more_mb"] <= GOAL_MB
    ratios = f"{found['ratio_seconds']:.3f} x by the clock, {found['ratio_cpu_seconds']:.3f} x of CPU"
    clock = f"{found['large_seconds']:.2f} s against {found['small_seconds']:.2f} s, A/A {control:.3f}"
    data = f"{found['large_data_seconds']:.2f} s against {found['small_data_seconds']:.2f} s"
    print(
        f"warm start with {arguments.pictures} pictures against 10: "
        f"{ratios}; {clock}; data {data}; "
        f"{found['more_mb']:+.0f} MB at the peak; "
        f"goal <= {GOAL} x and <= {GOAL_MB:.0f} MB: {'yes' if reached else 'NO'}"
    )
    print(json.dumps(found | {"control": control}))
    return 0 if reached or arguments.quick else 1


if __name__ == "__main__":
    sys.exit(main())
