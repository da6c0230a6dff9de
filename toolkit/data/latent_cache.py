"""Latents of items, computed once and found again by content.

The key holds everything the latents depend on: the picture's bytes, its size and place in the bucket, the
colour behind transparency and the VAE. Nothing can be stale; what is no longer asked for is merely unused.
Whether a picture's latents are there is told by names alone; they are read and checked when they are
needed, and made anew if they turn out to be damaged or gone by then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from toolkit.data.items import Bucket, MediaItem, Placement
from toolkit.data.prefetch import map_ahead
from toolkit.data.tensor_store import TensorStore, make_key
from toolkit.data.transforms import load_pixels
from toolkit.errors import DatasetError, JobStopped, ModelError, Problem

LATENT_VERSION = 2  # raise it when the way from file to pixels changes

# Of what lies on disk, so much of the last used stays in memory: all of a small dataset.
KEEP_BYTES = 2**26

PixelLoader = Callable[[Path, Bucket, Placement, tuple[int, int, int]], Tensor]
Encoder = Callable[[Tensor], Tensor]  # pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w)


def _values(record: Bucket | Placement) -> tuple[object, ...]:
    """The fields of a flat dataclass in order; dataclasses.astuple takes ten times as long."""
    return tuple(getattr(record, name) for name in record.__slots__)


@contextmanager
def _while_encoding(items: Sequence[MediaItem]) -> Iterator[None]:
    """Add the files' names to whatever goes wrong inside."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        error.add_note(f"while encoding {', '.join(str(item.path) for item in items)}")
        raise


class LatentCache:
    """Latents by item, in memory or (folder given) on disk; float32.

    tell: gets a line for each damaged file, and for the first that is gone. keep_bytes: of what lies on disk,
    so much of the last used stays in memory (None: KEEP_BYTES).
    """

    def __init__(
        self,
        folder: Path | None,
        vae_hash: str,
        *,
        tell: Callable[[str], None] | None = None,
        keep_bytes: int | None = None,
    ) -> None:
        keep_bytes = KEEP_BYTES if keep_bytes is None else keep_bytes
        self._store = TensorStore(folder, keep_bytes=keep_bytes, tell=tell)
        self.vae_hash = vae_hash
        self._make: Callable[[Sequence[MediaItem]], list[Tensor]] | None = None
        self._filled: set[str] = set()

    @property
    def notes(self) -> list[str]:
        """Damaged files that were found so far."""
        return self._store.notes

    def key(self, item: MediaItem) -> str:
        """The content address of an item's latents."""
        where = (_values(item.bucket), _values(item.placement), item.alpha_color)
        return make_key("latents", LATENT_VERSION, item.sha256, where, self.vae_hash)

    def path(self, item: MediaItem) -> Path:
        """The file of an item's latents. Raises ValueError for a cache in memory."""
        return self._store.path(self.key(item))

    def get(self, item: MediaItem) -> Tensor | None:
        """latents (C, h, w) float32, or None if they were never asked for. Do not change them.

        What `fill` found or made is there for good: if its file is damaged or gone by now, the picture is
        encoded again as `fill` did it. Raises DatasetError if the picture has changed or is gone as well.
        """
        key = self.key(item)
        found = (self._store.get(key) or {}).get("latents")
        if found is None and self._make is not None and key in self._filled:
            if not self._store.notes:
                self._store.note(f"latents of {item.path} are gone from the cache; encoded again")
            [found] = self._make([item])
        return found

    def put(self, item: MediaItem, latents: Tensor) -> Tensor:
        """Keep latents (C, h, w) and return them as kept, in float32 on the CPU.

        Raises ModelError if they are not finite, RunError if they cannot be written.
        """
        latents = latents.detach().to(device="cpu", dtype=torch.float32)
        if not bool(torch.isfinite(latents).all()):
            remedy = "run the VAE in float32 or bfloat16"
            reason = "the VAE turned it into latents that are not finite"
            raise ModelError(Problem("model.latents_not_finite", reason, file=str(item.path), remedy=remedy))
        self._store.put(self.key(item), {"latents": latents})
        return latents

    def encode(self, item: MediaItem, encode: Encoder, load: PixelLoader = load_pixels) -> Tensor:
        """Latents (C, h, w) of one picture, encoded now and kept. Raises as `fill` does."""
        [latents] = self._encode([item], encode, load)
        return latents

    def missing(self, items: Sequence[MediaItem]) -> list[MediaItem]:
        """One item for each content that is not in the cache, sorted by bucket."""
        return self._missing({self.key(item): item for item in items})

    def _missing(self, by_key: Mapping[str, MediaItem]) -> list[MediaItem]:
        present = self._store.present(by_key)
        absent = [item for key, item in by_key.items() if key not in present]
        return sorted(absent, key=lambda item: item.bucket)

    def fill(
        self,
        items: Sequence[MediaItem],
        encode: Encoder,
        load: PixelLoader = load_pixels,
        *,
        batch_size: int = 1,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> int:
        """Encode what is missing and return how many that were. progress gets (done, total).

        The next pictures are decoded on threads meanwhile. What another process has encoded by then is
        taken from it. One at a time by default: larger batches may differ in the last bits, and cost more on
        a CPU. Raises JobStopped if should_stop says so, DatasetError if a picture has changed since the scan.
        """
        by_key = {self.key(item): item for item in items}
        absent = self._missing(by_key)
        chunks = [
            chunk
            for _, group in groupby(absent, key=lambda item: item.bucket)
            for chunk in _cut(list(group), batch_size)
        ]
        done = encoded = 0
        with closing(map_ahead(partial(self._load, load=load), chunks)) as ahead:
            for chunk, pixels in zip(chunks, ahead, strict=True):
                if should_stop is not None and should_stop():
                    raise JobStopped(f"stopped with {done} of {len(absent)} pictures encoded")
                if pixels is not None:
                    self._encode_pixels(chunk, pixels, encode)
                    encoded += len(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, len(absent))
        self._make = partial(self._encode, encode=encode, load=load)
        self._filled.update(by_key)
        return encoded

    def _load(self, chunk: Sequence[MediaItem], load: PixelLoader) -> Tensor | None:
        """pixels (B, 3, H, W) of a chunk of items, or None if all are in the cache by now."""
        if all(self._store.has(self.key(item)) for item in chunk):
            return None
        return _load_pixels(chunk, load)

    def _encode(self, chunk: Sequence[MediaItem], encode: Encoder, load: PixelLoader) -> list[Tensor]:
        return self._encode_pixels(chunk, _load_pixels(chunk, load), encode)

    @torch.no_grad()
    def _encode_pixels(self, chunk: Sequence[MediaItem], pixels: Tensor, encode: Encoder) -> list[Tensor]:
        """Encode and keep; the latents of each item."""
        with _while_encoding(chunk):
            latents = encode(pixels)
            if len(latents) != len(chunk):
                raise ValueError(f"{len(chunk)} pictures gave {len(latents)} latents")
        return [self.put(item, its_latents) for item, its_latents in zip(chunk, latents, strict=True)]


def _cut(items: Sequence[MediaItem], size: int) -> list[Sequence[MediaItem]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _load_pixels(chunk: Sequence[MediaItem], load: PixelLoader) -> Tensor:
    """pixels (B, 3, H, W). Raises DatasetError if a picture is not the scanned one."""
    pixels = torch.stack([load(i.path, i.bucket, i.placement, i.alpha_color) for i in chunk])
    for item in chunk:
        _check_unchanged(item)
    return pixels


def _check_unchanged(item: MediaItem) -> None:
    """Raises DatasetError if a picture is no longer the scanned one, whose key its latents would get."""
    if item.path.is_file() and hashlib.sha256(item.path.read_bytes()).hexdigest() != item.sha256:
        problem = Problem("data.image_changed", "the picture changed while it was read", file=str(item.path))
        raise DatasetError(problem)
