"""Models by name: from a folder, a file, or the Hugging Face hub, with errors a user can act on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from huggingface_hub.errors import (  # type: ignore[attr-defined]
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of whichever HTTP library the hub client uses
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from toolkit.errors import ModelError, Problem
from toolkit.models.hub_cache import is_hub_id
from toolkit.models.shared.weightless import is_weightless
from toolkit.paths import models_root, resolve_model

MODEL_KEY = "model.name_or_path"  # the key of a job file that named the model

_WEIGHTS = ["*.safetensors", "*.bin", "*.ckpt", "*.pt", "*.msgpack", "*.onnx*", "*.h5"]
_CONFIGS = ["*.json", "*.txt", "*.model"]

# Beside the hub's own errors: time-outs and broken connections of its HTTP client, ids of a wrong form.
FAILURES = (OSError, EntryNotFoundError, HTTPError, ValueError)


def refuse(name: str, message: str, *, remedy: str | None = None, key: str = MODEL_KEY) -> NoReturn:
    """Raise the ModelError of a model that cannot be had."""
    raise ModelError(Problem("model.load", f"'{name}': {message}", key=key, remedy=remedy))


def find_model(name: str, *, key: str = MODEL_KEY) -> Path | None:
    """The local file or folder `name` means, None if it is a hub id. Raises ModelError if it is neither."""
    path = resolve_model(name)
    if path is not None:
        if not path.exists():
            refuse(name, f"the embedded model is missing from {path}", remedy="restore the checkout", key=key)
        return path
    if not is_hub_id(name):
        where = f"looked in the working folder and in {models_root()}"
        refuse(name, "no such file or folder, and not a hub id", remedy=where, key=key)
    return None


def download_index(repo_id: str, *, key: str = MODEL_KEY) -> Path:
    """The cached folder with the model_index.json of a hub model, downloaded if need be. Raises ModelError.

    A few hundred bytes that tell, before gigabytes follow, what the model is and whether its terms are accepted.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo_id, "model_index.json")).parent
    except FAILURES as error:
        explain_hub_error(repo_id, error, key=key)


def download_pipeline(repo_id: str, *, key: str = MODEL_KEY, without: Sequence[str] = ()) -> Path:
    """The cached folder of a diffusers model on the hub, downloaded if need be. Raises ModelError.

    without: components that are not needed. Only the configs where models are built as shapes.
    """
    if is_weightless():
        return download_folder(repo_id, _CONFIGS, key=key)
    from diffusers import DiffusionPipeline

    # The safety checker is larger than the text encoder and judges pictures that training never sees.
    unwanted = dict.fromkeys(("safety_checker", "feature_extractor", *without))
    try:
        folder = DiffusionPipeline.download(repo_id, **unwanted)
    except FAILURES as error:
        explain_hub_error(repo_id, error, key=key)
    return Path(folder)


def download_folder(repo_id: str, patterns: list[str], *, key: str) -> Path:
    """The cached folder of some files of a hub repository, downloaded if need be. Raises ModelError.

    Without weights where models are built as shapes.
    """
    from huggingface_hub import snapshot_download

    try:
        unwanted = _WEIGHTS if is_weightless() else None
        return Path(snapshot_download(repo_id, allow_patterns=patterns, ignore_patterns=unwanted))
    except FAILURES as error:
        explain_hub_error(repo_id, error, key=key)


def explain_hub_error(repo_id: str, error: Exception, *, key: str) -> NoReturn:
    """Raise the ModelError that says what a failed download means for the user."""
    reasons = list(_chain(error))
    message, remedy = f"cannot be downloaded: {_first_line(error)}", None
    if any(isinstance(reason, GatedRepoError) for reason in reasons):
        message = "is gated: its owner wants its terms accepted first"
        remedy = f"accept them at https://huggingface.co/{repo_id} and set HF_TOKEN"
    elif any(isinstance(reason, RepositoryNotFoundError) for reason in reasons):
        message = "no such model on the hub, or it is private"
        remedy = "check the spelling; for a private model set HF_TOKEN"
    elif any(isinstance(reason, OfflineModeIsEnabled) for reason in reasons):
        message = "is not in the local cache, and HF_HUB_OFFLINE forbids a download"
        remedy = "unset HF_HUB_OFFLINE, or give a local folder or file"
    elif any(isinstance(reason, LocalEntryNotFoundError) for reason in reasons):
        message = "is not in the local cache, and the hub cannot be reached"
        remedy = "check the network, or give a local folder or file"
    elif any(isinstance(reason, EntryNotFoundError) for reason in reasons):
        message = "the hub repository is not a diffusers model (no model_index.json)"
        remedy = "download its .safetensors file and give its path"
    elif any(isinstance(reason, HfHubHTTPError) for reason in reasons):
        message = f"the hub refused: {_first_line(error)}"
    elif any(isinstance(reason, HTTPError) for reason in reasons):
        cause = next(type(reason).__name__ for reason in reasons if isinstance(reason, HTTPError))
        message = f"is not in the local cache, and the hub cannot be reached ({cause})"
        remedy = "check the network, or give a local folder or file"
    raise ModelError(Problem("model.hub", f"'{repo_id}': {message}", key=key, remedy=remedy)) from error


def is_unanswered(error: BaseException) -> bool:
    """Whether a failure says nothing of the model itself: offline, or the hub could not be reached."""
    reasons = _chain(error)
    if any(isinstance(reason, HfHubHTTPError) and reason.response is not None for reason in reasons):
        return any(_status(reason) >= 500 for reason in reasons)
    silent = (OfflineModeIsEnabled, LocalEntryNotFoundError, HTTPError)
    return any(isinstance(reason, silent) for reason in reasons)


def _status(error: BaseException) -> int:
    """The HTTP status that an error carries, 0 without one."""
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _chain(error: BaseException) -> list[BaseException]:
    """An error and those that led to it."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _first_line(error: Exception) -> str:
    """The first line of an error's text, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
