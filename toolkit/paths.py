"""Where things live in the repository, and how a name given by a user becomes a path. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG_ROOT = ROOT / "config"
ASSETS_ROOT = ROOT / "toolkit" / "assets"
DATASETS_ROOT = ROOT / "datasets"
OUTPUT_ROOT = ROOT / "output"

# Models that come with the repository, by the name a config may use.
EMBEDDED_MODELS = {"tiny-sd": ASSETS_ROOT / "tiny_sd"}


def models_root() -> Path:
    """The folder where local models are looked up: $MODELS_PATH, or `models/` in the repository."""
    return Path(os.environ.get("MODELS_PATH") or ROOT / "models")


def cache_root() -> Path:
    """The user's cache folder for this program: $XDG_CACHE_HOME/ai-toolkit, else ~/.cache/ai-toolkit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ai-toolkit"


def resolve_path(name: str | os.PathLike[str]) -> Path:
    """A user's path: `~` expanded; relative paths count from the working folder, else from the repository."""
    path = Path(name).expanduser()
    # Not Path.exists, which raises for a name that is too long.
    if path.is_absolute() or os.path.exists(path) or not os.path.exists(ROOT / path):  # noqa: PTH110
        return path
    return ROOT / path


def is_folder(path: Path) -> bool:
    """Whether a folder is there; unlike Path.is_dir it raises for no name, however long."""
    return os.path.isdir(path)  # noqa: PTH112


def resolve_model(name_or_path: str) -> Path | None:
    """The local folder or file that `name_or_path` means, or None if it can only be a hub id."""
    if name_or_path in EMBEDDED_MODELS:
        return EMBEDDED_MODELS[name_or_path]
    for candidate in (resolve_path(name_or_path), models_root() / name_or_path):
        if candidate.exists():
            return candidate
    return None
