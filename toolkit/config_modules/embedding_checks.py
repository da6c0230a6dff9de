"""What goes together with an embedding in training, and what does not. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.config_modules.base import Location, Section
from toolkit.config_modules.process import TrainProcess
from toolkit.models.catalogue import ARCHITECTURES

Finding = tuple[Location, str, str, str | None]


def check_embedding(process: TrainProcess) -> Iterator[Finding]:
    """Settings that an embedding contradicts."""
    embedding = process.embedding
    if embedding is None:
        if process.type == "textual_inversion_trainer":
            yield ("embedding",), "config.missing_key", "is missing", "say which word is learned"
        return
    if not ARCHITECTURES[process.model.arch].embedding_keys:
        message = f"an embedding for {process.model.arch} is not supported yet"
        able = ", ".join(name for name, entry in ARCHITECTURES.items() if entry.embedding_keys)
        yield ("embedding",), "config.not_yet", message, f"supported: {able}"
    yield from _check_triggers(process, embedding.trigger)
    if process.network is None and process.train.train_text_encoder:
        message = "with an embedding the text encoder stays as it is"
        remedy = "leave it out, or add a network that is trained beside the embedding"
        yield ("train", "train_text_encoder"), "config.conflict", message, remedy
    cached: Location | None = next(
        (("datasets", i, "cache_text_embeddings") for i, each in enumerate(process.datasets)
         if each.cache_text_embeddings), None,
    )  # fmt: skip
    if cached is not None:
        place: Location = (
            ("train", "cache_text_embeddings") if process.train.cache_text_embeddings else cached
        )
        yield (
            place,
            "config.conflict",
            "cannot be combined with an embedding, which changes them",
            "leave it out",
        )
    if process.network is None and process.save.save_format == "diffusers":
        message = "diffusers is for full models; an embedding is one file"
        yield ("save", "save_format"), "config.conflict", message, "leave it out"


def unread_beside_embedding(process: TrainProcess) -> dict[Location, tuple[Section, str]]:
    """Learning rates of what is not trained: location -> (section, reason)."""
    if process.embedding is None:
        return {("train", "embedding_lr"): (process.train, "only counts with an embedding")}
    if process.network is not None:
        return {}
    reason = "without a network nothing but the embedding's vectors is trained"
    return {("train", key): (process.train, reason) for key in ("unet_lr", "text_encoder_lr")}


def _check_triggers(process: TrainProcess, trigger: str) -> Iterator[Finding]:
    places: dict[Location, str | None] = {("trigger_word",): process.trigger_word}
    for index, dataset in enumerate(process.datasets):
        if not dataset.is_reg:
            places["datasets", index, "trigger_word"] = dataset.trigger_word
    said = {place: word for place, word in places.items() if word != trigger}
    for place, word in said.items():
        if len(place) > 1 and word == process.trigger_word:
            continue  # handed down, and told there
        message = f"'{word}' is not the embedding's trigger '{trigger}', which captions would then lack"
        yield place, "config.conflict", message, "leave it out"
