"""Make a finished training of the tiny model the embedded one, with the record of it beside the weights.

    python -m tools.embed_tiny [--base output/tiny_base] [--vae output/tiny_vae] [--out FOLDER]

Copies the model, and writes training/: the configs and metrics of both runs, and provenance.json with the
hashes of the data, the commit and the versions. testing/test_tiny_model.py replays the first steps from it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from toolkit.data.image_files import IMAGE_SUFFIXES
from toolkit.errors import ModelError, Problem, UserError
from toolkit.paths import EMBEDDED_MODELS, ROOT
from toolkit.runs import atomic
from toolkit.runs.layout import RunFolder
from toolkit.runs.metrics import read_metrics

EVERY_ROW_UNTIL = 400  # the steps a test replays; after them a tenth of the rows tells the story
THIN = 10
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "pillow", "numpy")


def folder_hash(folder: Path) -> str:
    """sha256 over the names and bytes of all pictures and captions of a folder, in order of names."""
    digest = hashlib.sha256()
    suffixes = (*IMAGE_SUFFIXES, ".txt")
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def commit() -> str:
    """The commit of the working tree, with "+changes" if tracked files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first rows whole and then every tenth, without what only mattered to the machine that ran it."""
    kept = [row for row in rows if row["step"] <= EVERY_ROW_UNTIL or row["step"] % THIN == 0]
    return [{key: row[key] for key in ("step", "epoch", "loss", "lr", "grad_norm")} for row in kept]


def record(run: RunFolder, folder: Path, prefix: str, step: int | None) -> dict[str, Any]:
    """Copy a run's config and metrics up to `step` (None: its end); what there is to say about it."""
    rows = [row for row in read_metrics(run.metrics_path) if step is None or row["step"] <= step]
    lines = "".join(json.dumps(row) + "\n" for row in thinned(rows))
    atomic.write_text(folder / f"{prefix}_metrics.jsonl", lines)
    shutil.copyfile(run.config_path, folder / f"{prefix}_config.yml")
    config = yaml.safe_load(run.config_path.read_text(encoding="utf-8"))
    return {
        "steps": rows[-1]["step"],
        "planned_steps": config["config"]["process"][0]["train"]["steps"],
        "mean_loss_of_last_500_steps": round(mean(row["loss"] for row in rows[-500:]), 6),
        "minutes_on_one_core": round(sum(row["seconds"] for row in rows) / 60, 1),
    }


def newest_model(run: RunFolder) -> Path:
    """The finished model of a run, or that of its last save. Raises ModelError if there is none."""
    saved = [run.path / run.final_name(""), *(path for _, path in reversed(run.step_files()))]
    for folder in saved:
        if (folder / "model_index.json").is_file():
            return folder
    raise ModelError(Problem("model.not_found", "this run has saved no model yet", file=str(run.path)))


def _load_as_float32(config: Path) -> None:
    """Let transformers load half-precision weights in float32 by default, as diffusers does with its own."""
    values = json.loads(config.read_text(encoding="utf-8"))
    atomic.write_json(config, values | {"dtype": "float32"})


def embed(base: RunFolder, vae: RunFolder, out: Path, data: list[Path], made_by: str) -> None:
    """Replace the embedded model by a run's. Raises ModelError if the run has saved no model."""
    model = newest_model(base)
    with atomic.writing_folder(out) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
        # The autoencoder in full precision: with a rounded one the training could not be repeated.
        shutil.copytree(vae.path / vae.final_name(""), folder / "vae", dirs_exist_ok=True)
        _load_as_float32(folder / "text_encoder" / "config.json")
        training = folder / "training"
        training.mkdir()
        provenance = {
            "schema_version": 1,
            "commit": made_by,
            "python": platform.python_version(),
            "libraries": {name: version(name) for name in LIBRARIES},
            "threads": 1,
            "data": {str(path): folder_hash(path) for path in data},
            "vae": record(vae, training, "vae", None),
            "base": record(base, training, "base", base.parse_step(model)),
        }
        atomic.write_json(training / "provenance.json", provenance)


def main(argv: list[str] | None = None) -> int:
    """Embed the model; exit code 2 if there is none to embed."""
    parser = argparse.ArgumentParser(prog="python -m tools.embed_tiny", description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, default=Path("output/tiny_base"), help="run folder of the model")
    parser.add_argument(
        "--vae", type=Path, default=Path("output/tiny_vae"), help="run folder of the autoencoder"
    )
    parser.add_argument("--out", type=Path, default=EMBEDDED_MODELS["tiny-sd"], help="folder to replace")
    parser.add_argument(
        "--commit", default=None, help="the commit that trained it (default: the present one)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[Path("output/drawings"), Path("datasets/emoji")],
        help="datasets",
    )
    arguments = parser.parse_args(argv)
    base, vae = (RunFolder(path.parent, path.name) for path in (arguments.base, arguments.vae))
    try:
        embed(base, vae, arguments.out, arguments.data, arguments.commit or commit())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
