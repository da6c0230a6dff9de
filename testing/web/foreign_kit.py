"""What ai-toolkit leaves on a disk: the database of its UI with the tables of its schema, and run folders."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

# As Prisma makes them. `upstream` are the columns that later versions of the UI have added.
_TABLES = """
CREATE TABLE Settings (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL);
CREATE TABLE Queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, gpu_ids TEXT NOT NULL,
    is_running BOOLEAN NOT NULL DEFAULT false
);
CREATE TABLE Job (
    id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL, gpu_ids TEXT NOT NULL, job_config TEXT NOT NULL,
    created_at DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP, updated_at DATETIME NOT NULL,
    status TEXT NOT NULL DEFAULT 'stopped', stop BOOLEAN NOT NULL DEFAULT false,
    return_to_queue BOOLEAN NOT NULL DEFAULT false, step INTEGER NOT NULL DEFAULT 0,
    info TEXT NOT NULL DEFAULT '', speed_string TEXT NOT NULL DEFAULT '',
    queue_position INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX Job_name_key ON Job (name);
CREATE TABLE EvalJob (
    id TEXT PRIMARY KEY NOT NULL, dataset TEXT NOT NULL, model TEXT NOT NULL, params TEXT,
    status TEXT NOT NULL DEFAULT 'queued', out_json TEXT, info TEXT, created_at DATETIME, updated_at DATETIME
);
"""
_UPSTREAM = """
ALTER TABLE Job ADD COLUMN pid INTEGER;
ALTER TABLE Job ADD COLUMN total_steps INTEGER;
ALTER TABLE Job ADD COLUMN job_type TEXT NOT NULL DEFAULT 'train';
ALTER TABLE Job ADD COLUMN job_ref TEXT;
ALTER TABLE Job ADD COLUMN save_now BOOLEAN NOT NULL DEFAULT false;
ALTER TABLE Job ADD COLUMN sample_now BOOLEAN NOT NULL DEFAULT false;
"""
CREATED = 1_700_000_000_000  # milliseconds, as Prisma writes times


def job_config(name: str, folder: Path | str = "/elsewhere/output", **train: Any) -> dict[str, Any]:
    """A job as the form of ai-toolkit's UI makes it, with a LoRA on the embedded model."""
    process = {
        "type": "diffusion_trainer", "training_folder": str(folder), "sqlite_db_path": "./aitk_db.db",
        "device": "cuda", "trigger_word": None, "performance_log_every": 10,
        "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
        "save": {"dtype": "bf16", "save_every": 250, "max_step_saves_to_keep": 4},
        "datasets": [{"folder_path": "datasets/drawings", "caption_ext": "txt", "resolution": [32]}],
        "train": {"batch_size": 1, "steps": 500, "lr": 1e-4, "optimizer": "adamw", **train},
        "model": {"name_or_path": "tiny-sd", "arch": "sd1"},
        "sample": {
            "width": 32, "height": 32, "seed": 42, "sample_every": 250,
            "samples": [{"prompt": "a red circle"}, {"prompt": "a blue square"}],
        },
    }  # fmt: skip
    return {"job": "extension", "config": {"name": name, "process": [process]}, "meta": {"name": "[name]"}}


def make_database(
    path: Path, jobs: Sequence[Mapping[str, Any]] = (), *, settings: Mapping[str, str] | None = None,
    upstream: bool = True, wal: bool = True,
) -> Path:  # fmt: skip
    """A database of ai-toolkit's UI with these rows in its table Job; what they leave out is filled in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        if wal:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(_TABLES + (_UPSTREAM if upstream else ""))
        connection.executemany("INSERT INTO Settings (key, value) VALUES (?, ?)", (settings or {}).items())
        connection.execute("INSERT INTO Queue (gpu_ids, is_running) VALUES ('0', 1)")
        for number, row in enumerate(jobs):
            add_job(connection, number, row)
    return path


def add_job(connection: sqlite3.Connection, number: int, row: Mapping[str, Any]) -> None:
    """Add a row to the table Job."""
    name = row.get("name", f"job_{number}")
    values = {
        "id": f"00000000-0000-4000-8000-{number:012d}", "name": name, "gpu_ids": "0",
        "job_config": job_config(str(name)), "created_at": CREATED + number, "updated_at": CREATED + 5000,
        **row,
    }  # fmt: skip
    if not isinstance(values["job_config"], str | bytes):
        values["job_config"] = json.dumps(values["job_config"])
    columns = ", ".join(values)
    marks = ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO Job ({columns}) VALUES ({marks})", list(values.values()))  # noqa: S608


def make_run(
    folder: Path, *, steps: Sequence[int] = (250,), finished: bool = True, losses: bool = True,
    config: Mapping[str, Any] | None = None, prompts: int = 2,
) -> Path:  # fmt: skip
    """A run folder of ai-toolkit: config.yaml, models, optimizer.pt, samples, log.txt and loss_log.db."""
    name = folder.name
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.dump(config or job_config(name)), encoding="utf-8")
    for step in steps:
        (folder / f"{name}_{step:09d}.safetensors").write_bytes(b"model %d" % step)
        for index in range(prompts):
            picture = Image.new("RGB", (32, 32), (step % 256, index * 60, 90))
            picture.save(folder / "samples" / f"{CREATED + step}__{step:09d}_{index}.jpg")
    if finished:
        (folder / f"{name}.safetensors").write_bytes(b"model")
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "log.txt").write_text(f"Running job: {name}\nstep 1: loss 0.5\n", encoding="utf-8")
    if losses:
        make_loss_log(folder / "loss_log.db", max(steps, default=10))
    return folder


def make_loss_log(path: Path, steps: int) -> Path:
    """A loss_log.db of ai-toolkit: the loss of step n is 1/(n+1)."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE steps (step INTEGER PRIMARY KEY, wall_time REAL NOT NULL)")
        connection.execute(
            "CREATE TABLE metric_keys (key TEXT PRIMARY KEY, first_seen_step INTEGER, last_seen_step INTEGER)"
        )
        connection.execute(
            "CREATE TABLE metrics (step INTEGER NOT NULL, key TEXT NOT NULL, value_real REAL,"
            " value_text TEXT, PRIMARY KEY (step, key))"
        )
        connection.execute("CREATE INDEX metrics_by_key ON metrics (key, step)")
        for step in range(steps + 1):
            add_losses(connection, step, 1 / (step + 1))
    return path


def add_losses(connection: sqlite3.Connection, step: int, loss: float) -> None:
    """What a step writes into loss_log.db."""
    connection.execute("INSERT OR REPLACE INTO steps VALUES (?, ?)", (step, CREATED / 1000 + step))
    for key, value in (("loss/loss", loss), ("learning_rate", 1e-4)):
        connection.execute("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, NULL)", (step, key, value))
    connection.execute("INSERT OR REPLACE INTO metrics VALUES (?, 'note', NULL, 'text')", (step,))


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder with its size and time, to show that nothing was touched."""
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }
