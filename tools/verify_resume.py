"""Prove for a job that a killed and resumed run ends as one that was never interrupted, to the bit.

    python -m tools.verify_resume my_lora.yml [--steps 12] [--kills 2]

The job is run as it is, but for few steps, without previews and in a temporary folder: once straight through,
and once killed with SIGKILL and started again as often as asked. Compared are weights, optimizer, EMA, place
in the data and losses. Exit codes: 0 equal, 1 different, 2 the job cannot be run.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from toolkit.config_modules.loading import LoadedJob, load_job
from toolkit.config_modules.process import DiffusionProcess, VaeProcess
from toolkit.errors import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, Problem, RunError, UserError
from toolkit.paths import ROOT
from toolkit.runs.metrics import read_metrics

if TYPE_CHECKING:
    from toolkit.training.checkpoints import Checkpoint

STATE = ("position", "items", "skipped", "epoch", "ema_updates", "optimizer", "scaler")  # beside the tensors
_MOST_SHOWN = 10
KILLED = 1 if os.name == "nt" else -9


def short_job(loaded: LoadedJob, root: Path, name: str, steps: int, save_every: int) -> dict[str, Any]:
    """The raw job shortened: its first training, into `root/name`. Raises RunError if it trains nothing."""
    raw = copy.deepcopy(loaded.raw)
    for section, process in zip(loaded.config.process, raw["config"]["process"], strict=True):
        if not isinstance(section, DiffusionProcess | VaeProcess):
            continue
        process |= {"training_folder": str(root), "name": name}
        process["train"] = (process.get("train") or {}) | {"steps": steps, "disable_sampling": True}
        saving = {"save_every": save_every, "max_step_saves_to_keep": 1}
        process["save"] = (process.get("save") or {}) | saving
        process["logging"] = (process.get("logging") or {}) | {"log_every": 1}
        raw["config"]["process"] = [process]
        return raw
    raise RunError(Problem("run.no_training", "this job trains nothing", file=str(loaded.path)))


@dataclass
class Verdict:
    """What the comparison found. differences: lines for the user; counts: what was compared."""

    counts: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)


class Runs:
    """Starts short runs of one job in a folder of their own."""

    def __init__(self, loaded: LoadedJob, folder: Path, steps: int) -> None:
        self.loaded = loaded
        self.folder = folder
        self.steps = steps
        self.save_every = max(1, steps // 6)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """`run.py` on the short job of this name, its output in NAME.txt."""
        path = self.folder / f"{name}.yml"
        raw = short_job(self.loaded, self.folder / "runs", name, self.steps, self.save_every)
        path.write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8")
        with self.output(name).open("ab") as output:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "run.py"), str(path)], stdout=output, stderr=subprocess.STDOUT
            )

    def output(self, name: str) -> Path:
        """What the runs of this name printed."""
        return self.folder / f"{name}.txt"

    def to_the_end(self, name: str) -> Path:
        """Run to the end; the run folder. Raises RunError with the output's last lines if it fails."""
        code = self.start(name).wait()
        if code != EXIT_OK:
            raise self.failed(name, code)
        return self.folder / "runs" / name

    def failed(self, name: str, code: int) -> RunError:
        """The error for a run that did not end well."""
        lines = self.output(name).read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return RunError("\n".join(told or [f"the run ended with code {code}", *lines[-5:]]))

    def killed_after(self, name: str, step: int, pause: float) -> bool:
        """Run until the checkpoint of a step is there and `pause` seconds more; False if it ended before."""
        process = self.start(name)
        manifest = self.folder / "runs" / name / "checkpoints" / f"step_{step:09d}" / "manifest.json"
        try:
            while process.poll() is None and not manifest.exists():
                time.sleep(0.002)
            with suppress(subprocess.TimeoutExpired):
                process.wait(pause)
        finally:
            process.kill()
        code = process.wait()
        if code not in (EXIT_OK, KILLED):
            raise self.failed(name, code)
        return code == KILLED


def step_seconds(folder: Path) -> float:
    """Median seconds of a step of a finished run."""
    seconds = sorted(row["seconds"] for row in read_metrics(folder / "metrics.jsonl"))
    return float(seconds[len(seconds) // 2])


def kill_steps(steps: int, save_every: int, kills: int, draw: random.Random) -> list[int]:
    """After which saved steps to kill, in order; none of the last ones, for which a kill comes too late."""
    saved = list(range(save_every, max(save_every + 1, steps - save_every), save_every))
    return sorted(draw.choices(saved, k=kills)) if kills > len(saved) else sorted(draw.sample(saved, kills))


def final(folder: Path) -> Checkpoint:
    """The last checkpoint of a run."""
    from toolkit.runs.checkpoints import list_checkpoints
    from toolkit.training.checkpoints import load_checkpoint

    return load_checkpoint(list_checkpoints(folder / "checkpoints")[-1][1])


def compare(straight: Path, resumed: Path) -> Verdict:
    """Everything of two finished runs, bit by bit."""
    import torch

    one, two = final(straight), final(resumed)
    verdict = Verdict({group: len(tensors) for group, tensors in one.tensors.items()})
    for group in sorted(one.tensors.keys() | two.tensors.keys()):
        first, second = one.tensors.get(group, {}), two.tensors.get(group, {})
        for name in sorted(first.keys() | second.keys()):
            if name not in first or name not in second:
                verdict.differences.append(f"{group}: {name} is in one of the two only")
            elif not torch.equal(first[name], second[name]):
                far = (first[name].double() - second[name].double()).abs().max().item()
                verdict.differences.append(f"{group}: {name} differs by up to {far:.3g}")
    verdict.differences += [
        f"state: {key} is {two.values.get(key)} instead of {one.values.get(key)}"
        for key in STATE
        if one.values.get(key) != two.values.get(key)
    ]
    losses, others = _losses(straight), _losses(resumed)
    verdict.counts["losses"] = len(losses)
    wrong = [step for step in sorted(losses.keys() | others.keys()) if losses.get(step) != others.get(step)]
    if wrong:
        step = wrong[0]
        told = f"losses: from step {step} on, {others.get(step)} instead of {losses.get(step)}"
        verdict.differences.insert(0, told)
    return verdict


def _losses(folder: Path) -> Mapping[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(folder / "metrics.jsonl")}


def verify(loaded: LoadedJob, folder: Path, *, steps: int, kills: int, seed: int) -> int:
    """Run, kill, compare, print; the exit code. Raises UserError if the job cannot be run."""
    runs, draw = Runs(loaded, folder, steps), random.Random(seed)
    print(f"running {loaded.path} straight through, {steps} steps", flush=True)
    straight = runs.to_the_end("straight")
    seconds = step_seconds(straight)
    done = []
    for step in kill_steps(steps, runs.save_every, kills, draw):
        pause = draw.uniform(0, runs.save_every * seconds)
        if runs.killed_after("resumed", step, pause):
            done.append(step)
            print(f"killed {pause:.2f} s after the checkpoint of step {step}", flush=True)
    resumed = runs.to_the_end("resumed")
    if not done:
        print("NOT SHOWN: the run ended before every kill; try more --steps")
        return EXIT_FAILURE
    verdict = compare(straight, resumed)
    if not verdict.differences:
        parts = ", ".join(f"{what} {count}" for what, count in verdict.counts.items())
        print(f"EQUAL to the bit after {len(done)} kills, and so is the place in the data. Compared: {parts}")
        return EXIT_OK
    print(f"DIFFERENT after {len(done)} kills:")
    for line in _first(verdict.differences):
        print(f"  {line}")
    print("running straight through once more, to see whether this device repeats itself at all", flush=True)
    if compare(straight, runs.to_the_end("again")).differences:
        print(
            "two uninterrupted runs differ as well: arithmetic is not repeatable here; it is not the resuming"
        )
    else:
        print("two uninterrupted runs are equal: it is the resuming. Please report this with the job file")
    return EXIT_FAILURE


def _first(lines: Sequence[str]) -> list[str]:
    more = [f"and {len(lines) - _MOST_SHOWN} more"] if len(lines) > _MOST_SHOWN else []
    return [*lines[:_MOST_SHOWN], *more]


def main(argv: list[str] | None = None) -> int:
    """Verify one job; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", help="job file")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of each run (at least 4)")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments = parser.parse_args(argv)
    if arguments.steps < 4 or arguments.kills < 1:
        parser.error("--steps must be at least 4 and --kills at least 1")
    try:
        loaded = load_job(arguments.config)
        with tempfile.TemporaryDirectory(prefix="verify-resume-") as folder:
            return verify(
                loaded, Path(folder), steps=arguments.steps, kills=arguments.kills, seed=arguments.seed
            )
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
