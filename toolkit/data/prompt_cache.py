"""Conditioning by caption, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from toolkit.data.tensor_store import TensorStore, make_key
from toolkit.errors import JobStopped
from toolkit.prompt_utils import Conditioning

PROMPT_VERSION = 1

PromptEncoder = Callable[[list[str]], Conditioning]

# Of what lies on disk, so much of the last used stays in memory: a few captions that come again and again.
KEEP_BYTES = 2**27


@contextmanager
def _full_precision() -> Iterator[None]:
    """Without the autocast of a step: what is encoded amid one is what was encoded before it."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


class PromptCache:
    """Conditioning (batch of one, CPU) by caption, in memory or (folder given) on disk for later runs too.

    encoder_hash: of everything between text and embeddings: tokenizer, weights, dtype, settings. tell: gets
    a line for each damaged file, and for the first that is gone.
    """

    def __init__(
        self, folder: Path | None, encoder_hash: str, *, tell: Callable[[str], None] | None = None
    ) -> None:
        self._store = TensorStore(folder, keep_bytes=KEEP_BYTES, tell=tell)
        self.encoder_hash = encoder_hash
        self._encode: PromptEncoder | None = None
        self._filled: set[str] = set()

    @property
    def notes(self) -> list[str]:
        """Damaged files that were found so far."""
        return self._store.notes

    def key(self, caption: str) -> str:
        """The content address of a caption's conditioning."""
        return make_key("prompt", PROMPT_VERSION, caption, self.encoder_hash)

    def get(self, caption: str) -> Conditioning | None:
        """The conditioning of a caption (B = 1), or None if it was never asked for.

        What `fill` found or made is there for good: if its file is damaged or gone by now, it is encoded
        again.
        """
        key = self.key(caption)
        found = self._store.get(key)
        if found and "embeds" in found:
            return Conditioning.from_tensors(found)
        if self._encode is None or key not in self._filled:
            return None
        if not self._store.notes:
            self._store.note(f"the caption {caption!r} is gone from the cache; encoded again")
        return self._make(caption)

    @torch.no_grad()
    def _make(self, caption: str) -> Conditioning:
        assert self._encode is not None
        with _full_precision():
            made = self._encode([caption]).to("cpu")
        self.put(caption, made)
        return made

    def put(self, caption: str, conditioning: Conditioning) -> None:
        """Keep the conditioning of one caption. Raises ValueError unless B = 1."""
        if len(conditioning) != 1:
            raise ValueError(f"expected the conditioning of one caption, got {len(conditioning)}")
        self._store.put(self.key(caption), conditioning.tensors())

    def fill(
        self,
        captions: Iterable[str],
        encode: PromptEncoder,
        *,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> int:
        """Encode what is missing, one by one so that no caption pads another; return how many that were.

        What another process has encoded by its turn is taken from it. progress gets (done, total). Raises
        JobStopped if should_stop says so.
        """
        texts = {self.key(text): text for text in captions}
        present = self._store.present(texts)
        absent = [text for key, text in texts.items() if key not in present]
        self._encode, encoded = encode, 0
        for done, caption in enumerate(absent, start=1):
            if should_stop is not None and should_stop():
                raise JobStopped(f"stopped with {done - 1} of {len(absent)} captions encoded")
            if not self._store.has(self.key(caption)):
                self._make(caption)
                encoded += 1
            if progress is not None:
                progress(done, len(absent))
        self._filled.update(texts)
        return encoded
