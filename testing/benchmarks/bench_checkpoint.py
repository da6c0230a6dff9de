"""What saving a checkpoint costs: `python -m testing.benchmarks.bench_checkpoint [--quick]`.

Ratios between neighbours in one run. Writing: save_checkpoint (files, sha256, sync, manifest, rename) against
writing and syncing the same bytes as one file. Waiting: what the loop waits when it hands a state over,
against copying the same tensors. Beside them, copy and write together against the plain write.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from toolkit.training.checkpoint_writer import CheckpointWriter
from toolkit.training.checkpoints import Checkpoint, host_copy, save_checkpoint

GOAL = 1.3


def state(megabytes: int) -> dict[str, dict[str, torch.Tensor]]:
    """Groups of tensors as a training has them: weights, two moments each, an average."""
    elements = megabytes * 2**20 // 4
    sizes = {"weights": elements // 4, "optimizer": elements // 2, "ema": elements // 4}
    return {group: tensors(count) for group, count in sizes.items()}


def tensors(elements: int, each: int = 2**20) -> dict[str, torch.Tensor]:
    """So many float32 elements in tensors of up to `each`."""
    counts = [min(each, elements - start) for start in range(0, elements, each)]
    return {f"layer.{index}.weight": torch.randn(count) for index, count in enumerate(counts)}


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes on the clock."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def write_plainly(path: Path, pieces: list[memoryview]) -> None:
    """The least that makes bytes durable: one file, written and synced."""
    with path.open("wb", buffering=0) as file:
        for piece in pieces:
            file.write(piece)
        os.fsync(file.fileno())


def measure(folder: Path, megabytes: int, rounds: int) -> dict[str, float]:
    """Medians in milliseconds and ratios of neighbours."""
    groups = state(megabytes)
    flat = [tensor for group in groups.values() for tensor in group.values()]
    pieces = [tensor.view(torch.uint8).numpy().data for tensor in flat]
    found: dict[str, list[float]] = {"save": [], "write": [], "hand_over": [], "copy": [], "whole": []}
    for number in range(rounds):
        found["write"].append(seconds(lambda: write_plainly(folder / "plain", pieces)))
        (folder / "plain").unlink()
        given = Checkpoint(number, groups)
        found["save"].append(seconds(partial(save_checkpoint, folder / "a", given)))
        shutil.rmtree(folder / "a")
        found["copy"].append(seconds(lambda: [host_copy(tensor) for tensor in flat]))
        writer = CheckpointWriter(folder / "b", keep=1)
        started = time.perf_counter()
        copies = {name: {k: host_copy(t) for k, t in group.items()} for name, group in groups.items()}
        writer.submit(Checkpoint(number, copies))
        found["hand_over"].append(time.perf_counter() - started)
        writer.wait()
        found["whole"].append(time.perf_counter() - started)
        del copies
        shutil.rmtree(folder / "b")
    result = {f"{name}_ms": 1000 * statistics.median(times) for name, times in found.items()}
    pairs = {"save": ("save", "write"), "wait": ("hand_over", "copy"), "whole": ("whole", "write")}
    for name, (above, below) in pairs.items():
        result[f"{name}_ratio"] = statistics.median(
            a / b for a, b in zip(found[above], found[below], strict=True)
        )
    return {key: round(value, 3) for key, value in result.items()}


def main(argv: list[str] | None = None) -> int:
    """Measure and print; exit code 1 if a ratio is far above the goal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--folder", type=Path, default=None, help="on the disk to measure (default: temporary)"
    )
    parser.add_argument("--quick", action="store_true", help="64 MB, three rounds")
    arguments = parser.parse_args(argv)
    megabytes, rounds = (64, 3) if arguments.quick else (arguments.megabytes, arguments.rounds)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(Path(folder), megabytes, rounds)
    print(json.dumps(found | {"megabytes": megabytes}))
    print(
        f"saving {megabytes} MB: {found['save_ratio']:.2f} x writing and syncing (goal {GOAL} x); "
        f"the loop waits {found['wait_ratio']:.2f} x a copy; both together {found['whole_ratio']:.2f} x"
    )
    return 0 if max(found["save_ratio"], found["wait_ratio"]) <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
