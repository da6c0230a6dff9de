"""Settings of captions that do not go together, or have no effect beside the others. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.config_modules.base import Location, Section
from toolkit.config_modules.datasets import DatasetConfig
from toolkit.config_modules.process import TrainProcess

Finding = tuple[Location, str, str, str | None]


def check_captions(process: TrainProcess) -> Iterator[Finding]:
    """Settings of captions that cannot be obeyed."""
    for index, dataset in enumerate(process.datasets):
        if dataset.use_short_captions and not dataset.is_list and dataset.caption_ext.lower() != ".json":
            message = f"{dataset.caption_ext} files hold no short captions"
            remedy = "set caption_ext: json, or name a dataset JSON in folder_path"
            yield ("datasets", index, "use_short_captions"), "config.conflict", message, remedy
        given, most = len(dataset.random_triggers), dataset.random_triggers_max
        if given and most > given:
            message = f"{most} of {given} random triggers cannot be drawn"
            remedy = f"use {given} or less"
            yield ("datasets", index, "random_triggers_max"), "config.bad_value", message, remedy


def unread_captions(process: TrainProcess) -> dict[Location, tuple[Section, str]]:
    """Settings of captions that change nothing: location -> (section, reason)."""
    return {
        ("datasets", index, key): (dataset, reason)
        for index, dataset in enumerate(process.datasets)
        for key, reason in _unread(dataset).items()
    }


def _unread(dataset: DatasetConfig) -> dict[str, str]:
    unread = {}
    if dataset.is_list:
        unread["caption_ext"] = "captions come from the list of pictures"
    if not dataset.random_triggers:
        unread["random_triggers_max"] = "only counts with random_triggers"
    if not dataset.shuffle_tokens and not dataset.token_dropout_rate:
        unread["keep_tokens"] = "only counts with shuffle_tokens or token_dropout_rate"
    if not dataset.varies_captions or not dataset.cache_text_embeddings:
        keys = "shuffle_tokens, token_dropout_rate or random_triggers"
        unread["caption_variants"] = f"only counts with cache_text_embeddings and {keys}"
    return unread
