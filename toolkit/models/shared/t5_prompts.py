"""Prompts for T5's encoder: read whole, padded to one length, or refused.

Legend: B prompts, L tokens that a prompt is padded to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.models.shared.clip_prompts import refuse_long_prompt


def count_tokens(tokenizer: Any, prompt: str) -> int:
    """Tokens of a prompt with its end mark."""
    return len(tokenizer(prompt, truncation=False, verbose=False).input_ids)


def refuse_if_long(tokenizer: Any, prompt: str, length: int) -> None:
    """Raise ModelError for a prompt of more than `length` tokens: it would have to be cut."""
    count = count_tokens(tokenizer, prompt)
    if count > length:
        refuse_long_prompt(prompt, count, length)


def token_ids(tokenizer: Any, prompts: Sequence[str], *, length: int) -> Tensor:
    """B prompts -> token ids (B, length), padded at the end. Raises ModelError for one that is longer."""
    for prompt in prompts:
        refuse_if_long(tokenizer, prompt, length)
    ids: Tensor = torch.tensor(
        tokenizer(list(prompts), padding="max_length", max_length=length, truncation=False).input_ids
    )
    return ids
