"""Latents and prompts of an evaluation: each encoded once, few of them in memory at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from toolkit.data.items import MediaItem
from toolkit.data.latent_cache import LatentCache
from toolkit.data.tensor_store import TensorStore, make_key
from toolkit.models.base import Architecture
from toolkit.prompt_utils import Conditioning
from toolkit.seeding import keyed_generator


class Encodings:
    """Latents by item and conditioning by text, from the disk (folder given) or made now.

    As the model's text encoders are when this is made. strength: of the LoRAs on them, which their weights do
    not tell. Counts what it encodes, so that a report can say it. Of what lies on disk nothing but the empty
    text is kept in memory: an image is measured once, and buffers that stay between others that go leave
    holes which a process never gives back.
    """

    def __init__(self, model: Architecture, folder: Path | None, *, strength: float | None = None) -> None:
        self._model = model
        latents = None if folder is None else folder / "latents"
        self._latents = LatentCache(latents, model.vae_hash, keep_bytes=0)
        self._prompts = TensorStore(None if folder is None else folder / "eval_prompts")
        self._encoder = f"{model.text_encoder_hash} {strength}"
        self._blank: Conditioning | None = None
        self.num_latents = 0
        self.num_prompts = 0

    def latents(self, item: MediaItem) -> Tensor:
        """(C, h, w) float32 on the CPU. Raises DatasetError if the picture has changed or cannot be read."""
        found = self._latents.get(item)
        if found is None:
            self.num_latents += 1
            found = self._latents.encode(
                item, lambda pixels: self._model.encode_images(pixels.to(self._model.device))
            )
        return found

    def prompt(self, text: str) -> Conditioning:
        """The conditioning of a text, a batch of one on the CPU. Raises ModelError if it is too long."""
        if text:
            return self._prompt(text)
        self._blank = self._blank or self._prompt("")
        return self._blank

    @torch.no_grad()
    def _prompt(self, text: str) -> Conditioning:
        key = make_key("eval-prompt", text, self._encoder)
        found = self._prompts.get(key)
        if found is not None:
            return Conditioning.from_tensors(found)
        made = self._model.encode_prompts([text]).to("cpu")
        self._prompts.put(key, made.tensors())
        self.num_prompts += 1
        return made

    @torch.no_grad()
    def passing_prompt(self, text: str) -> Conditioning:
        """The same for a text that is asked for once: encoded, and not kept."""
        self.num_prompts += 1
        return self._model.encode_prompts([text]).to("cpu")


def zeroed(conditioning: Conditioning) -> Conditioning:
    """The same with embeddings and pooled embeddings of zeros: no text at all, not even an empty one."""
    pooled = None if conditioning.pooled is None else torch.zeros_like(conditioning.pooled)
    return Conditioning(
        torch.zeros_like(conditioning.embeds), conditioning.mask, pooled, dict(conditioning.extra)
    )


def randomised(conditioning: Conditioning, seed: int, content: str) -> Conditioning:
    """The same with normal embeddings of each token's own mean and spread, keyed by seed and content."""
    generator = keyed_generator("eval-random", seed, content)

    def like(values: Tensor) -> Tensor:
        noise = torch.randn(values.shape, generator=generator)
        std, mean = torch.std_mean(values.float(), dim=-1, keepdim=True)
        return (noise * std + mean).to(values.dtype)

    pooled = None if conditioning.pooled is None else like(conditioning.pooled)
    return Conditioning(like(conditioning.embeds), conditioning.mask, pooled, dict(conditioning.extra))
