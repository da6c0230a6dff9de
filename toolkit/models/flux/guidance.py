"""FLUX.1's guidance embedding, which tells the network how strongly to guide, and doing without it.

FLUX.1-dev was distilled to draw in one pass what classifier-free guidance draws in two (arXiv:2210.03142).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import Tensor


def has_guidance(transformer: Any) -> bool:
    """Whether the transformer has the embedding: FLUX.1-dev and Flex.1 do, FLUX.1-schnell does not."""
    return bool(transformer.config.guidance_embeds)


def bypass_guidance(transformer: Any) -> None:
    """Leave the guidance embedding out of every forward pass: time and pooled prompt are added as without it.

    Undone by `restore_guidance`. The weights stay where they are, so saving writes them too.
    """
    embedding = transformer.time_text_embed
    embedding.forward = MethodType(_without_guidance, embedding)


def _without_guidance(embedding: Any, timestep: Tensor, *rest: Tensor) -> Tensor:
    """(timestep, guidance, pooled) or (timestep, pooled), as diffusers' model calls it -> (B, D)."""
    from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings

    # The class without guidance reads the same three parts of the module.
    embedded: Tensor = CombinedTimestepTextProjEmbeddings.forward(embedding, timestep, rest[-1])
    return embedded


def restore_guidance(transformer: Any) -> None:
    """Undo `bypass_guidance`."""
    del transformer.time_text_embed.forward


@contextmanager
def guidance_bypassed(transformer: Any) -> Iterator[None]:
    """A context in which the guidance embedding is left out."""
    bypass_guidance(transformer)
    try:
        yield
    finally:
        restore_guidance(transformer)
