"""Latents of items, computed once and found again by content.

The key holds everything the latents depend on: the picture's bytes, its size and place in the bucket, the
colour behind transparency and the VAE. Nothing can be stale; what is no longer asked for is merely unused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from toolkit.data.items import Bucket, MediaItem, Placement
from toolkit.data.tensor_store import TensorStore, make_key
from toolkit.data.transforms import load_pixels
from toolkit.errors import DatasetError, JobStopped, ModelError, Problem

LATENT_VERSION = 1  # raise it when the way from file to pixels changes

PixelLoader = Callable[[Path, Bucket, Placement, tuple[int, int, int]], Tensor]
Encoder = Callable[[Tensor], Tensor]  # pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w)


@contextmanager
def _while_encoding(items: Sequence[MediaItem]) -> Iterator[None]:
    """Add the files' names to whatever goes wrong inside."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        error.add_note(f"while encoding {', '.join(str(item.path) for item in items)}")
        raise


class LatentCache:
    """Latents by item, in memory or (folder given) on disk; float32."""

    def __init__(self, folder: Path | None, vae_hash: str) -> None:
        self._store = TensorStore(folder)
        self.vae_hash = vae_hash

    @property
    def notes(self) -> list[str]:
        """Damaged files that were found so far."""
        return self._store.notes

    def key(self, item: MediaItem) -> str:
        """The content address of an item's latents."""
        where = (astuple(item.bucket), astuple(item.placement), item.alpha_color)
        return make_key("latents", LATENT_VERSION, item.sha256, where, self.vae_hash)

    def path(self, item: MediaItem) -> Path:
        """The file of an item's latents. Raises ValueError for a cache in memory."""
        return self._store.path(self.key(item))

    def get(self, item: MediaItem) -> Tensor | None:
        """latents (C, h, w) float32, or None if they are missing or damaged. Do not change them."""
        found = self._store.get(self.key(item))
        return None if found is None else found.get("latents")

    def put(self, item: MediaItem, latents: Tensor) -> None:
        """Keep latents (C, h, w). Raises ModelError if not finite, RunError if they cannot be written."""
        latents = latents.detach().to(device="cpu", dtype=torch.float32)
        if not bool(torch.isfinite(latents).all()):
            remedy = "run the VAE in float32 or bfloat16"
            reason = "the VAE turned it into latents that are not finite"
            raise ModelError(Problem("model.latents_not_finite", reason, file=str(item.path), remedy=remedy))
        self._store.put(self.key(item), {"latents": latents})

    def missing(self, items: Sequence[MediaItem]) -> list[MediaItem]:
        """One item for each content that is not in the cache, sorted by bucket."""
        by_key = {self.key(item): item for item in items}
        absent = [item for key, item in by_key.items() if self._store.get(key) is None]
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

        One at a time by default: larger batches may differ in the last bits, and cost more on a CPU.
        Raises JobStopped if should_stop says so, DatasetError if a picture has changed since the scan.
        """
        absent = self.missing(items)
        done = 0
        for _, group in groupby(absent, key=lambda item: item.bucket):
            in_bucket = list(group)
            for start in range(0, len(in_bucket), batch_size):
                if should_stop is not None and should_stop():
                    raise JobStopped(f"stopped with {done} of {len(absent)} pictures encoded")
                chunk = in_bucket[start : start + batch_size]
                self._encode(chunk, encode, load)
                done += len(chunk)
                if progress is not None:
                    progress(done, len(absent))
        return done

    @torch.no_grad()
    def _encode(self, chunk: Sequence[MediaItem], encode: Encoder, load: PixelLoader) -> None:
        pixels = torch.stack([load(i.path, i.bucket, i.placement, i.alpha_color) for i in chunk])
        with _while_encoding(chunk):
            latents = encode(pixels)
            if len(latents) != len(chunk):
                raise ValueError(f"{len(chunk)} pictures gave {len(latents)} latents")
        for item, its_latents in zip(chunk, latents, strict=True):
            _check_unchanged(item)
            self.put(item, its_latents)


def _check_unchanged(item: MediaItem) -> None:
    """Raises DatasetError if a picture is no longer the scanned one, whose key its latents would get."""
    if item.path.is_file() and hashlib.sha256(item.path.read_bytes()).hexdigest() != item.sha256:
        problem = Problem("data.image_changed", "the picture changed while it was read", file=str(item.path))
        raise DatasetError(problem)
