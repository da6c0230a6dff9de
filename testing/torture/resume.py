"""Kill training runs with SIGKILL, resume them, and demand the bits of the run that was never killed.

    python -m testing.torture.resume --kills 200

Half of the kills come at random moments, half at points planted where a checkpoint, a model, a row or a
record is being written (testing/torture/faults.py). Over LoRA, LoKr and full training x accumulation 1 and 3
x EMA off and on x 0 and 2 workers, and with a batch that finds no memory and one whose loss is not finite.
Compared with the straight run: every draw of every micro-batch (items, captions, t, noise, pixels), every
loss, and at the end the weights, optimizer, EMA, place in the data and files.

This process imports everything and then forks: a killed run costs the time of its steps. An append-only
ledger (output/torture/ledger.jsonl) sums up over calls.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

# Bit-exactness holds for a number of threads; and a fork takes only one along.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"

import accelerate  # noqa: F401 - imported here so that no child has to
import diffusers
import matplotlib.pyplot  # noqa: F401
import transformers

import jobs.process.sd_trainer  # noqa: F401
import toolkit.networks.lora  # noqa: F401
import toolkit.networks.lycoris
import toolkit.training.previews
import toolkit.training.report  # noqa: F401
from jobs.base_job import run_job
from testing.job_helpers import training_config
from testing.tiny_models import build_tiny_sd15
from testing.torture.faults import POINTS, Countdown
from testing.torture.recording import differences, final_state, last_rows, read_rows, record_into
from toolkit.config_modules.datasets import DatasetConfig
from toolkit.config_modules.loading import load_job
from toolkit.errors import UserError
from toolkit.paths import ROOT
from toolkit.training.checkpoints import newest_valid

# Classes that transformers and diffusers import when they are first asked for.
_WARM = (diffusers.StableDiffusionPipeline, transformers.CLIPTextModel, transformers.CLIPTokenizer)

STEPS, SAVE_EVERY = 12, 3
HUNG_S = 120.0


@dataclass(frozen=True)
class Combination:
    """One way of training. setbacks: with a planted lack of memory and a planted NaN, rolled back."""

    kind: str
    accumulation: int
    ema: bool
    workers: int
    setbacks: bool = False

    def __str__(self) -> str:
        parts = [self.kind, f"accumulation {self.accumulation}", "EMA" if self.ema else "no EMA"]
        return ", ".join([*parts, f"{self.workers} workers", *(["setbacks"] if self.setbacks else [])])

    def config(self, folder: Path, model: Path, name: str) -> Path:
        """The job file, with every random draw that there is switched on."""
        network = {"type": self.kind, "linear": 4, "linear_alpha": 2, "dropout": 0.2}
        dataset = {
            "folder_path": str(folder / "data"), "resolution": [32, 48], "flip_x": True,
            "caption_dropout_rate": 0.3, "num_workers": self.workers,
        }  # fmt: skip
        if "random_crop" in DatasetConfig.model_fields:
            dataset["random_crop"] = True
        return training_config(
            folder, model, name,
            network=None if self.kind == "full" else network,
            save={"save_every": SAVE_EVERY, "max_step_saves_to_keep": 2},
            datasets=[dataset],
            train={
                "steps": STEPS, "gradient_accumulation": self.accumulation,
                "lr_scheduler": "constant_with_warmup",
                "lr_scheduler_params": {"num_warmup_steps": 5},
                "ema_config": {"use_ema": self.ema, "ema_decay": 0.9},
                "on_non_finite": "rollback" if self.setbacks else "abort",
            },
        )  # fmt: skip

    @property
    def planted(self) -> dict[str, int]:
        """Positions of the micro-batches that go wrong."""
        if not self.setbacks:
            return {}
        return {"no_memory_at": 4 * self.accumulation, "nan_at": 8 * self.accumulation}


COMBINATIONS = [
    *(Combination(*values) for values in product(("lora", "lokr", "full"), (1, 3), (False, True), (0, 2))),
    Combination("lora", 1, True, 2, setbacks=True),
    Combination("lokr", 3, False, 0, setbacks=True),
]


@dataclass
class Tally:
    """What a call of this program has done."""

    random: int = 0
    planted: Counter[str] = field(default_factory=Counter)
    completed: int = 0
    attempts: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """All of them."""
        return self.random + self.planted.total()


def in_child(work: Callable[[], None], output: Path) -> int:
    """Fork; the child does the work and ends without Python's own tidying. Returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        handle = os.open(output, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        work()
        code = 0
    except UserError as error:
        sys.stdout.write(f"error: {error}\n")
    except BaseException:  # noqa: BLE001 - the child ends here, whatever it was
        import traceback

        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait_for(pid: int, seconds: float) -> int | None:
    """The exit code of a child (negative: its signal), or None if it still runs after so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


class Torture:
    """Kills the runs of one folder. sabotage: break resuming on purpose, to see that it is noticed."""

    def __init__(self, folder: Path, seed: int, *, sabotage: bool = False) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.sabotage = sabotage
        self.tally = Tally()
        self.model = folder / "model"
        self._must(in_child(self._prepare, folder / "prepare.txt"), folder / "prepare.txt")

    def _prepare(self) -> None:
        build_tiny_sd15(self.model)
        COMBINATIONS[0].config(self.folder, self.model, "none")

    def _must(self, pid: int, output: Path) -> None:
        code = wait_for(pid, HUNG_S)
        if code != 0:
            raise SystemExit(f"the run ended with {code}:\n{output.read_text(encoding='utf-8')}")

    def _start(self, config: Path, which: Combination, plant: tuple[str, int] | None) -> int:
        record = config.with_suffix(".rows")

        def work() -> None:
            if self.sabotage:
                forget_the_place()
            record_into(record, **which.planted)
            if plant is not None:
                POINTS[plant[0]](Countdown(plant[1]))
            run_job(load_job(config))

        self.tally.attempts += 1
        return in_child(work, config.with_suffix(".txt"))

    def torture(self, which: Combination, kills: int) -> None:
        """Kill runs of one combination so many times in all; each is resumed to its end and compared."""
        label = f"c{COMBINATIONS.index(which)}"
        straight = which.config(self.folder, self.model, f"{label}_straight")
        started = time.monotonic()
        self._must(self._start(straight, which, None), straight.with_suffix(".txt"))
        seconds = time.monotonic() - started
        number, goal = 0, self.tally.kills + kills
        while self.tally.kills < goal:
            number += 1
            broken = which.config(self.folder, self.model, f"{label}_broken{number}")
            if not self._to_the_end(broken, which, seconds, goal):
                return
            self._compare(which, straight, broken)

    def _to_the_end(self, config: Path, which: Combination, seconds: float, goal: int) -> bool:
        """Kill and resume one run; False if it ended in an error, which counts as a difference."""
        root = self.folder / "out" / config.stem / "checkpoints"
        newest = -1
        while True:
            enough = self.tally.kills >= goal
            planted = not enough and self.tally.planted.total() <= self.tally.random
            plant = self._draw_point(which) if planted else None
            pid = self._start(config, which, plant)
            if not enough and not planted:
                code = wait_for(pid, self.random.uniform(0.0, 1.05 * seconds))
                if code is None:
                    os.kill(pid, signal.SIGKILL)
                    code = wait_for(pid, HUNG_S)
            else:
                code = wait_for(pid, HUNG_S)
            if code == 0:
                return True
            if code != -signal.SIGKILL:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                text = config.with_suffix(".txt").read_text(encoding="utf-8")
                self.tally.differences.append(f"{which}: after a kill the run ended with {code}:\n{text}")
                return False
            if plant is None:
                self.tally.random += 1
            else:
                self.tally.planted[plant[0]] += 1
            newest = self._still_there(which, root, newest, plant)

    def _draw_point(self, which: Combination) -> tuple[str, int]:
        """The point that was used least, and the how-manieth time it is passed."""
        names = [name for name in POINTS if which.setbacks or not name.startswith("record")]
        fewest = min(self.tally.planted[name] for name in names)
        name = self.random.choice([name for name in names if self.tally.planted[name] == fewest])
        only_once = name in ("resumed", "half pruned", "lock not linked")
        return name, 1 if only_once else self.random.choice((1, 1, 2, 3))

    def _still_there(self, which: Combination, root: Path, before: int, plant: Any) -> int:
        """The step of the newest valid checkpoint, which a kill must never take away."""
        folder, damaged = newest_valid(root)
        step = int(folder.name[5:]) if folder is not None else -1
        if (step < before and not which.setbacks) or damaged:
            self.tally.differences.append(f"{which}: a kill ({plant}) left {folder}, damaged {damaged}")
        return step

    def _compare(self, which: Combination, straight: Path, broken: Path) -> None:
        self.tally.completed += 1
        folders = [self.folder / "out" / path.stem for path in (straight, broken)]
        one, two = (renamed(final_state(folder), folder.name) for folder in folders)
        found = differences(one, two)
        rows, truth = broken.with_suffix(".rows"), last_rows(straight.with_suffix(".rows"))
        found += differences(last_rows(rows), truth)
        if not which.setbacks:  # every attempt at a step, not only the last, was the same
            found += [row["at"] for row in read_rows(rows) if row != truth.get(row["at"])]
        if "losses" in found:
            found.append(f"rows {sorted(set(one['losses']) ^ set(two['losses']))}")
        if found:
            self.tally.differences.append(f"{which}: {broken.stem}: {', '.join(dict.fromkeys(found))}")


def renamed(state: dict[str, Any], name: str) -> dict[str, Any]:
    """The state with the names of its files as they would be in a run called `run`."""
    return state | {"model files": [(file.replace(name, "run"), h) for file, h in state["model files"]]}


def forget_the_place() -> None:
    """Break resuming: the place in the data is off by one."""
    from toolkit.training import run_state

    position = run_state._position
    run_state._position = lambda *args: position(*args) + 1  # type: ignore[assignment]


def spread(kills: int, combinations: list[Combination]) -> dict[Combination, int]:
    """So many kills over the combinations, as evenly as can be."""
    each, extra = divmod(kills, len(combinations))
    return {which: each + (index < extra) for index, which in enumerate(combinations)}


def write_ledger(path: Path, row: dict[str, Any]) -> dict[str, int]:
    """Append a row; the sums over all rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    keys = ("kills", "random", "planted", "completed", "differences")
    return {key: sum(row[key] for row in rows) for key in keys} | {"calls": len(rows)}


def main(argv: list[str] | None = None) -> int:
    """Torture, print, keep the ledger; exit code 1 if a single bit differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=26, help="in all; by default one for each combination")
    parser.add_argument("--seed", type=int, default=None, help="of moments and points (default: the clock's)")
    parser.add_argument("--only", default="", help="combinations whose name contains this")
    parser.add_argument("--ledger", type=Path, default=ROOT / "output" / "torture" / "ledger.jsonl")
    parser.add_argument("--sabotage", action="store_true", help="break resuming, to see it noticed")
    arguments = parser.parse_args(argv)
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise SystemExit("a thread is running already: forking would leave it behind")
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    chosen = [which for which in COMBINATIONS if arguments.only in str(which)]
    if not chosen:
        parser.error(f"no combination's name contains {arguments.only!r}; one is {COMBINATIONS[0]}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        torture = Torture(Path(folder), seed, sabotage=arguments.sabotage)
        tally = torture.tally
        for which, kills in spread(arguments.kills, chosen).items():
            torture.torture(which, kills)
            sys.stdout.write(f"{which}: {tally.kills} kills, {len(tally.differences)} differences\n")
            sys.stdout.flush()
    row = asdict(tally) | {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"), "seconds": round(time.monotonic() - started),
        "seed": seed,
        "kills": tally.kills, "planted": tally.planted.total(), "points": dict(tally.planted),
        "combinations": len(chosen), "differences": len(tally.differences), "sabotage": arguments.sabotage,
    }  # fmt: skip
    sums = write_ledger(arguments.ledger, row)
    for line in tally.differences:
        sys.stdout.write(f"DIFFERS: {line}\n")
    sys.stdout.write(f"this call: {json.dumps(row)}\nledger {arguments.ledger}: {json.dumps(sums)}\n")
    return 1 if tally.differences else 0


if __name__ == "__main__":
    sys.exit(main())
