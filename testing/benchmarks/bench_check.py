"""What a look before a run costs: `python -m testing.benchmarks.bench_check`.

Starting up: `run.py --help` and a mistake in a config, against `python -c pass`. Checking pictures:
`--check --full` on thousands of them against a bare pool of threads that decodes the same files, and the same
check again, which has nothing left to do but to stat files.

Every figure is of whole processes, as a user waits for them. For pictures CPU time is compared beside time
on the clock, as other processes disturb it least; both sides alternate, so that they see the same weather.
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
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import Random

import yaml
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
GOALS = {"help": 6.0, "config_error": 20.0, "full": 0.9}
NUM_DRAWN = 16  # distinct pictures; the others are copies with bytes of their own behind the picture's end

BARE = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from PIL import Image

def decode(path):
    with open(path, "rb") as file:
        Image.open(BytesIO(file.read())).load()

paths = sorted(entry.path for entry in os.scandir(sys.argv[1]) if entry.name.endswith(".jpg"))
with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(decode, paths))
"""


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, and of CPU over all threads."""

    wall: float
    cpu: float


def run(command: list[str], folder: Path, expected: int = 0) -> Cost:
    """Run a process to its end; raises AssertionError with its output if it ends otherwise than expected."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    # Compiled modules are kept, as for users: without them a start compiles 47 of ours each time.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == expected, result.stdout[-2000:] + result.stderr[-2000:]
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def draw_pictures(folder: Path, number: int, side: int) -> None:
    """Photo-like JPEG files of side x side pixels, no two alike, each with a caption."""
    folder.mkdir()
    drawn = []
    for index in range(min(NUM_DRAWN, number)):
        rng = Random(index)
        noise = Image.effect_noise((side, side), 40).convert("RGB")
        shapes = Image.new("RGB", (side, side), (rng.randrange(256), rng.randrange(256), 120))
        for _ in range(12):
            x, y = rng.randrange(side), rng.randrange(side)
            colour = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
            ImageDraw.Draw(shapes).ellipse((x - side // 6, y - side // 6, x, y), fill=colour)
        data = BytesIO()
        Image.blend(shapes, noise, 0.3).save(data, "JPEG", quality=90)
        drawn.append(data.getvalue())
    long_ago = time.time() - 3600
    for index in range(number):
        path = folder / f"{index:05d}.jpg"
        path.write_bytes(drawn[index % len(drawn)] + index.to_bytes(4, "big"))
        path.with_suffix(".txt").write_text(f"a picture of shapes, number {index}", encoding="utf-8")
        os.utime(path, (long_ago, long_ago))


def write_job(folder: Path, pictures: Path, side: int) -> Path:
    """A LoRA job on the pictures; returns its file."""
    process = {
        "type": "sd_trainer",
        "training_folder": str(folder / "output"),
        "network": {"type": "lora", "linear": 8, "linear_alpha": 8},
        "datasets": [{"folder_path": str(pictures), "resolution": side}],
        "train": {"steps": 1000},
        "model": {"name_or_path": "tiny-sd"},
    }
    path = folder / "bench.yml"
    path.write_text(yaml.safe_dump({"job": "train", "config": {"name": "bench", "process": [process]}}))
    return path


def measure_start(folder: Path, rounds: int) -> dict[str, float]:
    """How many times longer than an empty program --help and a config error take, each at its best.

    What else the machine does only ever adds to such short times, so the shortest of each is compared.
    """
    bad = folder / "bad.yml"
    text = (ROOT / "config" / "examples" / "demo.yml").read_text(encoding="utf-8")
    bad.write_text(text.replace("steps:", "stepz:", 1), encoding="utf-8")
    cases = {"help": (["--help"], 0), "config_error": ([str(bad)], 2)}
    costs: dict[str, list[Cost]] = {}
    run([sys.executable, str(ROOT / "run.py"), str(bad)], folder, 2)  # bytecode is written once
    for _ in range(rounds):
        for name, (arguments, code) in cases.items():
            costs.setdefault("pass", []).append(run([sys.executable, "-c", "pass"], folder))
            ours = run([sys.executable, str(ROOT / "run.py"), *arguments], folder, code)
            costs.setdefault(name, []).append(ours)
    best = {name: min(cost.wall for cost in values) for name, values in costs.items()}
    return {name: best[name] / best["pass"] for name in cases} | {"pass_s": best["pass"]}


def measure_pictures(folder: Path, number: int, side: int, rounds: int) -> dict[str, float]:
    """Speed of the full check against bare decoding (1 is equal, more is faster), and of the second check."""
    pictures = folder / "pictures"
    draw_pictures(pictures, number, side)
    job = write_job(folder, pictures, side)
    check = [sys.executable, str(ROOT / "run.py"), "--check", "--full", "--json", str(job)]
    memo = folder / "cache" / "ai-toolkit" / "images"
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        bare = run([sys.executable, "-c", BARE, str(pictures)], folder)
        for path in memo.glob("*.json"):
            path.unlink()
        full, again = run(check, folder), run(check, folder)
        for clock in ("wall", "cpu"):
            found.setdefault(f"full_{clock}", []).append(getattr(bare, clock) / getattr(full, clock))
            found.setdefault(f"full_{clock}_s", []).append(getattr(full, clock))
            found.setdefault(f"bare_{clock}_s", []).append(getattr(bare, clock))
            found.setdefault(f"again_{clock}_s", []).append(getattr(again, clock))
    return {name: statistics.median(values) for name, values in found.items()}


def main(argv: list[str] | None = None) -> int:
    """Measure and print; exit code 1 if a ratio misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="200 small pictures, one round: does it work?")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.images, arguments.size, arguments.rounds = 200, 96, 1
    with tempfile.TemporaryDirectory() as folder:
        found = measure_start(Path(folder), 10 * arguments.rounds)
        found |= measure_pictures(Path(folder), arguments.images, arguments.size, arguments.rounds)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    print(f"run.py --help: {found['help']:.1f} x python -c pass (goal {GOALS['help']:g})")
    print(f"a config error: {found['config_error']:.1f} x (goal {GOALS['config_error']:g})")
    print(
        f"--check --full on {arguments.images} pictures of {arguments.size} px: {found['full_cpu']:.2f} x "
        f"the speed of bare decoding in CPU time, {found['full_wall']:.2f} on the clock "
        f"(goal {GOALS['full']:g}); again in {found['again_wall_s']:.1f} s"
    )
    if arguments.quick:
        return 0
    good = found["help"] <= GOALS["help"] and found["config_error"] <= GOALS["config_error"]
    return 0 if good and min(found["full_cpu"], found["full_wall"]) >= GOALS["full"] else 1


if __name__ == "__main__":
    sys.exit(main())
