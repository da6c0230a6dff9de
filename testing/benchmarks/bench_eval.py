"""What an evaluation costs beside its bare forward passes, and what shared noise saves.

    python -m testing.benchmarks.bench_eval [--quick]

cost: CPU time of an evaluation (its draws, noising, losses, records, statistics and report) over that of the
same number of batched predictions alone, median of interleaved rounds; A/A is the bare loop against itself.
saving: evaluations that unpaired seeds (another noise and level for each caption) need for the standard error
that shared, stratified noise reaches, as a multiple; it is the ratio of the variances of the mean difference.
The more alike two captions are the larger it is: measured between a caption and none, which this model tells
apart at a glance, and between two wordings of the same.
memory: growth of the process while many more images than fit into its small caches are measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray

from testing.eval_helpers import unseen, write
from toolkit.data.items import MediaItem
from toolkit.data.scan import scan_dataset
from toolkit.evaluation.contrasts import CaptionPool
from toolkit.evaluation.draws import Design
from toolkit.evaluation.encodings import Encodings
from toolkit.evaluation.evaluate import Evaluator, Outcome, Settings
from toolkit.evaluation.measure import Subject, measure
from toolkit.evaluation.records import RecordFile
from toolkit.evaluation.summary import Context, summarise
from toolkit.model_utils import load_model_for_inference
from toolkit.models.base import Architecture
from toolkit.prompt_utils import concat
from tools.draw_shapes import captions

Values = NDArray[numpy.float64]
BATCH = 4
OTHERS = 7
DRAWS = 16


def prepared(folder: Path, count: int) -> list[MediaItem]:
    """Items of so many drawings."""
    place = write(folder / "drawings", unseen(count))
    return scan_dataset(place, resolutions=[32], size_multiple=8).require_valid().items


def evaluate(
    model: Architecture, items: Sequence[MediaItem], encodings: Encodings, records: Path, num_draws: int
) -> list[Outcome]:
    """What the tool does for a data set, from the encoded pictures to the report's images."""
    settings = Settings(Design(), num_draws, BATCH, num_others=OTHERS)
    pool = CaptionPool([item.caption for item in items], seed=0)
    records.unlink(missing_ok=True)
    outcomes = Evaluator(model, encodings, settings, pool, RecordFile(records, "bench")).run(items)
    context = Context(name=lambda o: o.item.path.name, noise_std=lambda t: t, dataset="bench")
    summarise(outcomes, context)
    return outcomes


@torch.inference_mode()
def bare(model: Architecture, items: Sequence[MediaItem], encodings: Encodings, num_draws: int) -> None:
    """The same number of predictions, of as many rows, and nothing else."""
    rows = BATCH * (2 + OTHERS)
    latents = encodings.latents(items[0])[None].expand(rows, -1, -1, -1).contiguous()
    conditioning = concat([encodings.prompt(items[0].caption)] * rows)
    t = torch.full((rows,), 0.5)
    for _ in range(len(items) // BATCH * num_draws):
        model.predict(latents, t, conditioning)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of a piece of work: other programs' load does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def cost(
    model: Architecture, folder: Path, *, num_images: int, num_draws: int, rounds: int
) -> dict[str, float]:
    """Ratios of the evaluation, and of the bare loop, to the bare loop."""
    items, encodings = prepared(folder, num_images), Encodings(model, None)
    for item in items:
        encodings.latents(item)
        encodings.prompt(item.caption)

    def loop() -> None:
        bare(model, items, encodings, num_draws)

    loop()
    ratios, control = [], []
    for _ in range(rounds):
        first = cpu_seconds(loop)
        whole = cpu_seconds(lambda: evaluate(model, items, encodings, folder / "cost.jsonl", num_draws))
        second = cpu_seconds(loop)
        ratios.append(2 * whole / (first + second))
        control.append(second / first)
    return {
        "cost": statistics.median(ratios),
        "cost_best": min(ratios),
        "control": statistics.median(control),
    }


def losses(
    model: Architecture, encodings: Encodings, rows: Sequence[tuple[MediaItem, list[str]]], design: Design,
    draws: Sequence[int],
) -> Values:  # fmt: skip
    """The losses (B, A, D) of some pictures under the texts beside each."""
    subjects = [
        Subject(item, encodings.latents(item), [encodings.prompt(text) for text in texts])
        for item, texts in rows
    ]
    found: Values = measure(model, subjects, draws, design).losses.double().numpy()
    return found


def rewordings(count: int) -> list[str]:
    """Another wording of each drawing's caption."""
    names = ("shape", "colour", "background", "size", "position")
    found = []
    for drawing in unseen(count):
        every = captions(**{name: getattr(drawing, name) for name in names})
        found.append(next(text for text in every if text != drawing.caption))
    return found


def saving(
    model: Architecture, folder: Path, others: Sequence[str], *, num_images: int, num_draws: int
) -> float:
    """Variance of an image's mean difference from unpaired draws, over that from shared, stratified ones."""
    items, encodings = prepared(folder, num_images), Encodings(model, None)
    shared, unpaired = [], []
    for start in range(0, num_images, BATCH):
        chunk = items[start : start + BATCH]
        texts = others[start : start + BATCH]
        both = [(item, [item.caption, text]) for item, text in zip(chunk, texts, strict=True)]
        own = [(item, [item.caption]) for item in chunk]
        other = [(item, [text]) for item, text in zip(chunk, texts, strict=True)]
        # The variance of the mean over the whole design, by repeating it under other seeds.
        means = []
        for seed in range(4):
            found = losses(model, encodings, both, Design(seed=seed), range(num_draws))
            means.append((found[:, 1] - found[:, 0]).mean(axis=-1))
        shared.append(numpy.var(means, axis=0, ddof=1))
        apart = []
        for draw in range(num_draws):
            first = losses(model, encodings, own, Design(seed=1000 + draw), [0])
            second = losses(model, encodings, other, Design(seed=2000 + draw), [0])
            apart.append((second - first)[:, 0, 0])
        unpaired.append(numpy.var(apart, axis=0, ddof=1) / num_draws)
    return float(numpy.concatenate(unpaired).mean() / numpy.concatenate(shared).mean())


def memory(model: Architecture, folder: Path, *, num_images: int) -> dict[str, float]:
    """Megabytes that the process grows by for each thousand images, latents and prompts on disk."""
    items, encodings = prepared(folder, num_images), Encodings(model, folder / "cache")
    evaluate(model, items[:16], encodings, folder / "memory.jsonl", 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    evaluate(model, items, encodings, folder / "memory.jsonl", 1)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"megabytes_per_1000_images": grown * 1000 / num_images}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="few images and rounds, for a look and for the tests"
    )
    quick = parser.parse_args(argv).quick
    torch.set_num_threads(1)
    model = load_model_for_inference("tiny-sd").architecture
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_images, num_draws = (4, 8) if quick else (24, DRAWS)
        sizes = (4, 4, 3) if quick else (8, DRAWS, 9)
        found = cost(model, folder / "cost", num_images=sizes[0], num_draws=sizes[1], rounds=sizes[2])
        for name, others in (("none", [""] * num_images), ("rewording", rewordings(num_images))):
            value = saving(model, folder / name, others, num_images=num_images, num_draws=num_draws)
            found[f"saving_{name}"] = value
        if not quick:
            found |= memory(model, folder / "memory", num_images=600)
    sys.stdout.write(json.dumps({name: round(value, 3) for name, value in found.items()}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
