"""What a denoiser is told besides the noisy latents: prompt embeddings and their companions.

Legend: B batch, L tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of B items; every tensor has the batch first.

    embeds (B, L, D); mask (B, L), 1 where a token counts; pooled (B, P); extra holds what only some
    architectures need (size ids, guidance, control latents), each (B, ...).
    """

    embeds: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        def optional(value: Tensor | None) -> Tensor | None:
            return None if value is None else function(value)

        extra = {key: function(value) for key, value in self.extra.items()}
        return Conditioning(function(self.embeds), optional(self.mask), optional(self.pooled), extra)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """Moved to a device, the host not waiting for it; floating-point tensors also cast to dtype."""
        there = device is not None and torch.device(device).type != "cpu"

        def move(x: Tensor) -> Tensor:
            return x.to(device=device, dtype=dtype if x.is_floating_point() else None, non_blocking=there)

        return self._map(move)

    def pinned(self) -> Conditioning:
        """In memory that a GPU fetches by itself."""
        return self._map(torch.Tensor.pin_memory)

    def detach(self) -> Conditioning:
        """The same values outside the autograd graph."""
        return self._map(lambda x: x.detach())

    def __getitem__(self, index: int | slice) -> Conditioning:
        """Some of the items; an int gives a batch of one."""
        where = slice(index, index + 1 or None) if isinstance(index, int) else index
        return self._map(lambda x: x[where])

    def tensors(self) -> dict[str, Tensor]:
        """Flat name -> tensor, as stored in a cache file; `from_tensors` is its inverse."""
        flat = {name: getattr(self, name) for name in ("embeds", "mask", "pooled")}
        extra = {f"extra.{name}": value for name, value in self.extra.items()}
        return {name: value for name, value in flat.items() if value is not None} | extra

    @staticmethod
    def from_tensors(flat: dict[str, Tensor]) -> Conditioning:
        """Rebuild what `tensors` took apart."""
        extra = {k.removeprefix("extra."): v for k, v in flat.items() if k.startswith("extra.")}
        return Conditioning(flat["embeds"], flat.get("mask"), flat.get("pooled"), extra)


def _pad_tokens(x: Tensor, length: int) -> Tensor:
    """(B, L, ...) -> (B, length, ...), zeros after the end."""
    missing = length - x.shape[1]
    return x if missing == 0 else torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)


def concat(parts: Sequence[Conditioning]) -> Conditioning:
    """Stack along the batch; shorter token sequences are padded with zeros and masked out.

    Without masks the lengths must agree: an unmasked pad would be attended to. Raises ValueError.
    """
    lengths = {part.embeds.shape[1] for part in parts}
    if len(lengths) > 1 and any(part.mask is None for part in parts):
        raise ValueError(f"cannot concat unmasked embeddings of different lengths {sorted(lengths)}")
    length = max(lengths)
    first = parts[0]
    masks = [part.mask for part in parts if part.mask is not None]
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Conditioning(
        embeds=torch.cat([_pad_tokens(part.embeds, length) for part in parts]),
        mask=torch.cat([_pad_tokens(mask, length) for mask in masks]) if masks else None,
        pooled=torch.cat(pooled) if pooled else None,
        extra={key: torch.cat([part.extra[key] for part in parts]) for key in first.extra},
    )
