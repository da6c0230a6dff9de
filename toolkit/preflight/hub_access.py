"""Whether a model on the hub can be had, and how much of it is still to be downloaded. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from toolkit.errors import ModelError, Problem
from toolkit.models.hub_cache import UNUSED_PARTS, cached_snapshot, hub_cache_root, missing_parts

TIMEOUT_S = 10.0
_WEIGHTS = (".safetensors", ".bin")
# Formats of other programs, which diffusers leaves on the hub.
_FOREIGN = (".onnx", ".onnx_data", ".pb", ".msgpack", ".h5", ".xml", ".ot", ".tflite", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """What is known of a repository. where: cache (nothing to download), hub, or unknown (not reached).

    download_bytes: what is still to come, None if unknown. problem: why it cannot be had; certain is False
    where only the hub's answer is missing.
    """

    repo_id: str
    where: str
    download_bytes: int | None = None
    problem: Problem | None = None
    certain: bool = True
    gated: bool = False

    @property
    def cache(self) -> Path:
        """The folder that the download goes to."""
        return hub_cache_root()


def ask_hub(repo_id: str, *, key: str, patterns: Sequence[str] | None = None, api: Any = None) -> HubAnswer:
    """Look for a model in the cache, else ask the hub about it; downloads nothing, raises nothing.

    patterns: the files that are wanted, None for a whole diffusers pipeline. api: a client with HfApi's
    model_info and auth_check, None for one made here (HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured).
    """
    cached = cached_snapshot(repo_id)
    if cached is not None and patterns is None and not missing_parts(cached):
        return HubAnswer(repo_id, "cache", 0)
    from toolkit.models.shared.hub import FAILURES, explain_hub_error, is_unanswered

    try:
        return _ask(repo_id, patterns, cached, api)
    except FAILURES as error:
        unanswered = is_unanswered(error)
        if unanswered and patterns is not None and cached is not None:
            return HubAnswer(repo_id, "cache")
        try:
            explain_hub_error(repo_id, error, key=key)
        except ModelError as explained:
            (problem,) = explained.problems
    return HubAnswer(repo_id, "unknown", None, problem, certain=not unanswered)


def _ask(repo_id: str, patterns: Sequence[str] | None, cached: Path | None, api: Any) -> HubAnswer:
    """The hub's answer. Raises what its client raises."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError

    client = api if api is not None else HfApi()
    info = client.model_info(repo_id, files_metadata=True, timeout=TIMEOUT_S)
    gated = bool(getattr(info, "gated", False))
    if gated:
        client.auth_check(repo_id)
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
    if patterns is None and "model_index.json" not in sizes:
        raise EntryNotFoundError("model_index.json")
    wanted = pipeline_files(sizes) if patterns is None else matching_files(sizes, patterns)
    absent = [name for name in wanted if cached is None or not (cached / name).exists()]
    known = [size for name in absent if (size := sizes[name]) is not None]
    total = sum(known) if len(known) == len(absent) else None
    return HubAnswer(repo_id, "hub" if absent else "cache", total, gated=gated)


def matching_files(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The files that fit one of the patterns."""
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in patterns))


def pipeline_files(names: Iterable[str]) -> list[str]:
    """The files of a diffusers repository that loading it downloads: of each part one set of weights.

    safetensors before .bin, and no variants such as fp16, as diffusers chooses for itself.
    """
    parts: dict[str, list[str]] = {}
    for name in names:
        part, _, rest = name.partition("/")
        if rest and "/" not in rest and part not in UNUSED_PARTS:
            parts.setdefault(part, []).append(name)
    found = ["model_index.json"]
    for files in parts.values():
        weights = [name for name in files if name.endswith(_WEIGHTS) and not _is_variant(name)]
        safe = [name for name in weights if name.endswith(".safetensors")]
        found += safe or weights
        found += [
            name for name in files if not name.endswith((*_WEIGHTS, *_FOREIGN)) and not _is_variant(name)
        ]
    return sorted(found)


def _is_variant(name: str) -> bool:
    """Whether a file is another form of one beside it: `model.fp16.safetensors`."""
    stem = name.rpartition("/")[2]
    for ending in (".index.json", *_WEIGHTS):
        stem = stem.removesuffix(ending)
    return "." in stem and not stem.endswith((".json", ".txt", ".model"))


def has_token() -> bool:
    """Whether the hub's client has a token to show, from HF_TOKEN or a login."""
    if os.environ.get("HF_TOKEN"):
        return True
    from huggingface_hub import get_token

    return get_token() is not None
