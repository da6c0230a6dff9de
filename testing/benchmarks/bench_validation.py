"""What a validation costs beyond its forward passes: `python -m testing.benchmarks.bench_validation`.

The same pictures go through the same model as often, once as a run measures them and once as bare calls of
the denoiser on ready batches of the same shapes. Both take turns; compared is the CPU time of the process, as
other programs disturb it least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from toolkit.data.items import Bucket, MediaItem, Placement
from toolkit.evaluation.measure import Subject
from toolkit.evaluation.validation import Grid, measure_grid
from toolkit.model_utils import load_model_for_inference
from toolkit.paths import resolve_model
from toolkit.stable_diffusion_model import StableDiffusion

GOAL = 1.05


def subjects_of(sd: StableDiffusion, num: int, size: int) -> list[Subject]:
    """Pictures of noise with captions of their own."""
    model = sd.architecture
    generator = torch.Generator().manual_seed(0)
    shape = model.latent_spec.shape(size, size)
    found = []
    for index in range(num):
        item = MediaItem(
            str(index), resolve_model("tiny-sd") / f"{index}.png", f"{index:064x}", f"picture {index}",
            "0:noise", Bucket(size, size), Placement(size, size, 0, 0),
        )  # fmt: skip
        with torch.no_grad():
            conditioning = model.encode_prompts([item.caption])
        found.append(Subject(item, torch.randn(shape, generator=generator), [conditioning]))
    return found


def bare(sd: StableDiffusion, subjects: list[Subject], batch_size: int, num_draws: int) -> Callable[[], None]:
    """As many calls of the denoiser on batches that lie ready."""
    batches = [subjects[start : start + batch_size] for start in range(0, len(subjects), batch_size)]
    ready = [
        (torch.stack([s.latents for s in batch]), torch.cat([s.conditions[0].embeds for s in batch]))
        for batch in batches
    ]
    step = torch.tensor(500)

    @torch.inference_mode()
    def run() -> None:
        for latents, embeds in ready:
            for _ in range(num_draws):
                sd.unet(latents, step, embeds)

    return run


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of the process for one call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny-sd")
    parser.add_argument("--size", type=int, default=32, help="side of the pictures in pixels")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="fewer pictures and rounds")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.pictures, arguments.rounds = 8, 9
    sd = load_model_for_inference(arguments.model)
    grid = Grid(num_levels=4, num_noises=1)
    subjects = subjects_of(sd, arguments.pictures, arguments.size)
    plain = bare(sd, subjects, arguments.batch_size, grid.num_draws)

    def ours() -> object:
        return measure_grid(sd.architecture, subjects, grid, batch_size=arguments.batch_size)

    ours(), plain()  # warm up
    pairs = [(cpu_seconds(ours), cpu_seconds(plain)) for _ in range(arguments.rounds)]
    ratio = statistics.median(one / two for one, two in pairs)
    result = {
        "ratio": round(ratio, 4), "goal": GOAL, "rounds": arguments.rounds,
        "forwards": grid.num_draws * -(-arguments.pictures // arguments.batch_size),
        "validation_s": round(statistics.median(one for one, _ in pairs), 4),
        "bare_s": round(statistics.median(two for _, two in pairs), 4),
    }  # fmt: skip
    print(json.dumps(result))
    return 0 if ratio <= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
