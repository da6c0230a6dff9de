"""What of a hub repository lies in the local cache already, read without the network and without torch."""

from __future__ import annotations

import re
from pathlib import Path

from toolkit.models.geometry import read_json

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LOOKS_LIKE_FILE = (".safetensors", ".ckpt", ".pt", ".bin")
_WEIGHTS = (".safetensors", ".bin")
# What diffusers and transformers call the weights of a component, and a part of those.
_WEIGHT_NAME = re.compile(r"(?:diffusion_pytorch_model|model)[.-]")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
# Parts of a pipeline that are never downloaded: see toolkit.models.shared.hub.
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
# Parts of a pipeline that have no weights.
_LIGHT_PARTS = ("scheduler", "tokenizer")


def is_hub_id(name: str) -> bool:
    """Whether a name that means nothing on this machine can be owner/repository on the hub."""
    return _HUB_ID.fullmatch(name) is not None and not name.endswith(_LOOKS_LIKE_FILE)


def hub_cache_root() -> Path:
    """The folder in which the hub's client keeps what it downloads."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def cached_snapshot(repo_id: str, root: Path | None = None) -> Path | None:
    """The folder of the cached files of a repository's main branch, complete or not; None without any."""
    root = hub_cache_root() if root is None else root
    folder = root / f"models--{repo_id.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def pipeline_parts(index: dict[str, object]) -> list[str]:
    """The components that a model_index.json names and that are used here."""
    return [
        name
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] is not None and name not in UNUSED_PARTS
    ]


def missing_parts(folder: Path) -> list[str]:
    """The components that a diffusers folder names and does not hold whole; the index itself if it lacks."""
    index = read_json(folder / "model_index.json")
    if not index:
        return ["model_index.json"]
    return [part for part in pipeline_parts(index) if not _is_whole(folder / part)]


def loaded_weights(folder: Path) -> list[Path]:
    """The .safetensors files of a component that loading it reads: no other variants, nothing that lies about.

    Of half precision alone, its files; with an index, those that it names.
    """
    files = [path for path in sorted(folder.glob("*.safetensors")) if _WEIGHT_NAME.match(path.name)]
    plain = [path for path in files if "." not in path.stem]
    chosen = plain or [path for path in files if ".fp16" in path.name]
    named: set[str] = set()
    for index in folder.glob("*.index.json"):
        shards = read_json(index).get("weight_map")
        named |= set(map(str, shards.values())) if isinstance(shards, dict) else set()
    return [path for path in chosen if not _SHARD.search(path.name) or path.name in named]


def _is_whole(folder: Path) -> bool:
    """Whether a component's folder has its files, all shards of its weights among them."""
    if not folder.is_dir():
        return False
    if folder.name.startswith(_LIGHT_PARTS):
        return any(folder.iterdir())
    for index in folder.glob("*.index.json"):
        shards = read_json(index).get("weight_map")
        if isinstance(shards, dict) and all((folder / str(name)).exists() for name in set(shards.values())):
            return True
    sharded = any(folder.glob("*.index.json"))
    return not sharded and any(path.suffix in _WEIGHTS and path.exists() for path in folder.iterdir())
