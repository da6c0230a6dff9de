"""How FLUX.1's transformer sees latents: a row of tokens, each a square of 2 x 2, and where each lies.

Legend: B batch, C latent channels, h w latent rows and columns (both even), N = h w / 4 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

PATCH = 2


def pack(latents: Tensor) -> Tensor:
    """latents (B, C, h, w) -> tokens (B, N, 4 C), row by row; of a token the channel counts slowest."""
    squares = latents.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # (B, C, h / 2, 2, w / 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """tokens (B, N, 4 C) -> latents (B, C, rows, columns)."""
    squares = tokens.unflatten(1, (rows // PATCH, columns // PATCH)).unflatten(3, (-1, PATCH, PATCH))
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def image_ids(rows: int, columns: int, device: torch.device) -> Tensor:
    """(0, row, column) of each token of rows x columns latents, (N, 3) float32: whole in any size."""
    down = torch.arange(rows // PATCH, dtype=torch.float32, device=device)
    across = torch.arange(columns // PATCH, dtype=torch.float32, device=device)
    row, column = torch.meshgrid(down, across, indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1)


def text_ids(num_tokens: int, device: torch.device) -> Tensor:
    """The place of every token of a prompt, (L, 3) float32: all at the origin."""
    return torch.zeros(num_tokens, 3, device=device)
