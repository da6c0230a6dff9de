"""Conditioning by caption, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from toolkit.data.tensor_store import TensorStore, make_key
from toolkit.errors import JobStopped
from toolkit.prompt_utils import Conditioning

PROMPT_VERSION = 1

PromptEncoder = Callable[[list[str]], Conditioning]


class PromptCache:
    """Conditioning (batch of one, CPU) by caption, in memory and (folder given) on disk for later runs.

    What was filled or read once stays in memory: there is no encoder left to make it anew amid a run.
    encoder_hash: of everything between text and embeddings: tokenizer, weights, dtype, settings.
    """

    def __init__(self, folder: Path | None, encoder_hash: str) -> None:
        self._store = TensorStore(folder, remember=True)
        self.encoder_hash = encoder_hash

    @property
    def notes(self) -> list[str]:
        """Damaged files that were found so far."""
        return self._store.notes

    def key(self, caption: str) -> str:
        """The content address of a caption's conditioning."""
        return make_key("prompt", PROMPT_VERSION, caption, self.encoder_hash)

    def get(self, caption: str) -> Conditioning | None:
        """The conditioning of a caption (B = 1), or None if it is missing or damaged."""
        found = self._store.get(self.key(caption))
        return Conditioning.from_tensors(found) if found and "embeds" in found else None

    def put(self, caption: str, conditioning: Conditioning) -> None:
        """Keep the conditioning of one caption. Raises ValueError unless B = 1."""
        if len(conditioning) != 1:
            raise ValueError(f"expected the conditioning of one caption, got {len(conditioning)}")
        self._store.put(self.key(caption), conditioning.tensors())

    @torch.no_grad()
    def fill(
        self,
        captions: Iterable[str],
        encode: PromptEncoder,
        *,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> int:
        """Encode what is missing, one by one so that no caption pads another; return how many that were.

        progress gets (done, total). Raises JobStopped if should_stop says so.
        """
        absent = [text for text in dict.fromkeys(captions) if self._store.get(self.key(text)) is None]
        for done, caption in enumerate(absent, start=1):
            if should_stop is not None and should_stop():
                raise JobStopped(f"stopped with {done - 1} of {len(absent)} captions encoded")
            self.put(caption, encode([caption]))
            if progress is not None:
                progress(done, len(absent))
        return len(absent)
