"""What an evaluation costs beside its bare forward passes, and what shared noise saves.

    python -m testing.benchmarks.bench_eval [--quick]

cost: CPU time of an evaluation (its draws, noising, losses, records, statistics and report) over that of the
same number of batched predictions alone, median of interleaved rounds; A/A is the bare loop against itself.
saving: evaluations that unpaired seeds (another noise and level for each caption) need for the standard error
that shared, stratified noise reaches, as a multiple; it is the ratio of the variances of the mean difference.
The more alike two captions are the larger it is: measured between a caption and none, which this model tells
apart at a glance, and between two wordings of the same.
memory: of the process while 10,000 images are measured and reported; it should stay where it is.
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
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray
from PIL import Image

from testing.eval_helpers import unseen, write
from testing.tiny_models import build_tiny_sd15
from toolkit.data.items import MediaItem
from toolkit.data.scan import scan_dataset
from toolkit.evaluation.contrasts import CaptionPool
from toolkit.evaluation.draws import Design
from toolkit.evaluation.encodings import Encodings
from toolkit.evaluation.evaluate import Evaluator, Settings
from toolkit.evaluation.html_report import write_html
from toolkit.evaluation.measure import Subject, measure
from toolkit.evaluation.outcomes import Outcomes
from toolkit.evaluation.records import RecordFile
from toolkit.evaluation.request import EvalRequest
from toolkit.evaluation.service import run_evaluation
from toolkit.evaluation.summary import Context, summarise
from toolkit.model_utils import load_model_for_inference
from toolkit.models.base import Architecture
from toolkit.prompt_utils import concat
from toolkit.runs.watcher import Watcher
from tools.draw_shapes import captions

Values = NDArray[numpy.float64]
BATCH = 4
OTHERS = 7
DRAWS = 16
MANY = 16  # images in a pass where memory is measured


def prepared(folder: Path, count: int) -> list[MediaItem]:
    """Items of so many drawings."""
    place = write(folder / "drawings", unseen(count))
    return scan_dataset(place, resolutions=[32], size_multiple=8).require_valid().items


def evaluate(
    model: Architecture, items: Sequence[MediaItem], encodings: Encodings, records: Path, num_draws: int
) -> Outcomes:
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


def memory(folder: Path, *, num_images: int) -> dict[str, float]:
    """Megabytes of the process: early and late in the measuring of many images, and at most, up to the page.

    A tiny model with random weights, in a process whose caches are empty; growth is told by thousand images.
    """
    command = [sys.executable, "-m", "testing.benchmarks.bench_eval", "--memory-of", str(num_images)]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder)}
    folder.mkdir(parents=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def many(folder: Path, count: int) -> Path:
    """So many small pictures, each with a caption of its own."""
    folder.mkdir()
    draws = numpy.random.default_rng(0)
    for index in range(count):
        image = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=numpy.uint8)).resize((32, 32))
        image.save(folder / f"{index:05d}.png")
        (folder / f"{index:05d}.txt").write_text(f"a red circle on blue, number {index}", encoding="utf-8")
    return folder


def memory_of(num_images: int) -> dict[str, float]:
    """See memory; in this process."""
    folder = Path(tempfile.mkdtemp())
    model = build_tiny_sd15(folder / "model")
    place = many(folder / "pictures", num_images)
    seen: dict[int, float] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what == "images" and 10 * done // total > 10 * (done - MANY) // total:
            seen[done] = resident_megabytes()

    settings = Settings(num_draws=2, batch_size=MANY, num_others=OTHERS)
    request = EvalRequest([str(place)], str(model), folder / "out", settings=settings, resolution=32)
    report = run_evaluation(request, Watcher(progress=progress))
    write_html(report, folder / "out" / "page.html")
    (first, early), (last, late) = min(seen.items()), max(seen.items())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "megabytes_early": early,
        "megabytes_late": late,
        "megabytes_most": most,
        "megabytes_per_1000_images": 1000 * (late - early) / (last - first),
    }


def resident_megabytes() -> float:
    """What the process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="few images and rounds, for a look and for the tests"
    )
    parser.add_argument("--memory-of", type=int, metavar="N", help="only the memory, of N images")
    options = parser.parse_args(argv)
    quick = options.quick
    torch.set_num_threads(1)
    if options.memory_of:
        sys.stdout.write(json.dumps(memory_of(options.memory_of)) + "\n")
        return 0
    model = load_model_for_inference("tiny-sd").architecture
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_images, num_draws = (4, 8) if quick else (24, DRAWS)
        # Eight images have seven others each, so that both have as many rows a pass.
        sizes = (8, 4, 3) if quick else (8, DRAWS, 9)
        found = cost(model, folder / "cost", num_images=sizes[0], num_draws=sizes[1], rounds=sizes[2])
        for name, others in (("none", [""] * num_images), ("rewording", rewordings(num_images))):
            value = saving(model, folder / name, others, num_images=num_images, num_draws=num_draws)
            found[f"saving_{name}"] = value
        if not quick:
            found |= memory(folder / "memory", num_images=10_000)
    sys.stdout.write(json.dumps({name: round(value, 3) for name, value in found.items()}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
