"""Prompts for CLIP's text encoders, also those longer than their window.

As kohya's trainers do: the tokens are cut into windows of 75, each gets begin and end marks of its own and is
encoded by itself; then the states are joined again, with the first begin mark and the last end mark kept. So n
windows of 77 tokens give 75 n + 2 states, and one window is what every pipeline does.

Legend: B prompts, n windows, W tokens of a window with its marks, D embedding width.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from toolkit.errors import ModelError
from toolkit.models.prompt_limits import long_prompt
from toolkit.models.shared.components import component_hash

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from toolkit.config_modules.sample import SampleRequest
    from toolkit.models.base import Architecture

MARKS = 2  # begin and end
MAX_WINDOWS = 3  # the longest prompts that tools in use read: 225 tokens


def window_length(tokenizer: CLIPTokenizer, encoder: Any) -> int:
    """W: tokens of one window with its marks, 77 for CLIP."""
    return min(tokenizer.model_max_length, encoder.config.max_position_embeddings)


def count_tokens(tokenizer: Any, prompt: str) -> int:
    """Tokens of a prompt with its begin and end marks."""
    return len(_token_ids(tokenizer, prompt))


def _token_ids(tokenizer: Any, prompt: str) -> list[int]:
    ids: list[int] = tokenizer(spell_out(tokenizer, prompt), truncation=False, verbose=False).input_ids
    return ids


def spell_out(tokenizer: Any, prompt: str) -> str:
    """The prompt with every added word of several vectors as its tokens: word -> "word word_1 word_2".

    diffusers' pipelines do the same. A word that is spelled out already stays as it is.
    """
    added = tokenizer.added_tokens_encoder
    for word in added:
        rest: list[str] = []
        while f"{word}_{len(rest) + 1}" in added:
            rest.append(f"{word}_{len(rest) + 1}")
        if rest:
            name = re.escape(word)
            pattern = re.compile(rf"{name}(?!_\d|\s+{name}_1)", re.IGNORECASE)
            prompt = pattern.sub(" ".join([word, *rest]), prompt)
    return prompt


def windows_needed(num_tokens: int, length: int) -> int:
    """How many windows of `length` hold a prompt of so many tokens, each counted with its marks."""
    return max(1, -(-(num_tokens - MARKS) // (length - MARKS)))


def refuse_long_prompt(prompt: str, num_tokens: int, limit: int) -> NoReturn:
    """Raise the ModelError of a prompt that would have to be cut."""
    raise ModelError(long_prompt(prompt, num_tokens, limit))


def token_windows(tokenizer: Any, prompts: Sequence[str], *, length: int, num_windows: int) -> Tensor:
    """B prompts -> token ids (B, n, W), n at least num_windows and as many as the longest prompt needs.

    Raises ModelError for a prompt that does not fit in MAX_WINDOWS.
    """
    tokens = [_token_ids(tokenizer, prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, tokens, strict=True):
        if windows_needed(len(ids), length) > max(MAX_WINDOWS, num_windows):
            limit = MAX_WINDOWS * (length - MARKS)
            refuse_long_prompt(prompt, len(ids) - MARKS, limit)
    count = max([num_windows, *(windows_needed(len(ids), length) for ids in tokens)])
    return torch.tensor([_windows(ids, tokenizer.pad_token_id, length, count) for ids in tokens])


def _windows(ids: list[int], pad: int, length: int, count: int) -> list[list[int]]:
    """Token ids with their marks -> `count` windows of `length`, each with marks and padded."""
    begin, *inner, end = ids
    room = length - MARKS
    parts = [inner[start * room : (start + 1) * room] for start in range(count)]
    return [[begin, *part, end, *[pad] * (room - len(part))] for part in parts]


def join_windows(states: Tensor, num_windows: int) -> Tensor:
    """states (B n, W, D) of windows encoded one by one -> (B, n (W - 2) + 2, D)."""
    if num_windows == 1:
        return states
    apart = states.unflatten(0, (-1, num_windows))
    inner = apart[:, :, 1:-1].flatten(1, 2)
    return torch.cat([apart[:, 0, :1], inner, apart[:, -1, -1:]], dim=1)


def pipeline_texts(model: Architecture, request: SampleRequest) -> dict[str, Any]:
    """The prompts of a request as diffusers' pipelines take them; encoded where they would be cut silently.

    Raises ModelError for a prompt that does not fit in MAX_WINDOWS.
    """
    texts = [request.prompt, request.neg]
    if all(model.windows_needed(text) == 1 for text in texts):
        return {"prompt": request.prompt, "negative_prompt": request.neg}
    with torch.no_grad():
        both = model.encode_prompts(texts)
    told = {"prompt_embeds": both.embeds[:1], "negative_prompt_embeds": both.embeds[1:]}
    if both.pooled is not None:
        told |= {"pooled_prompt_embeds": both.pooled[:1], "negative_pooled_prompt_embeds": both.pooled[1:]}
    return told


def prompt_hash(parts: Sequence[tuple[nn.Module, Any]], *settings: object) -> str:
    """What cached embeddings depend on: encoders and their tokenizers, and how many tokens are read."""
    texts = [text for encoder, tokenizer in parts for text in (component_hash(encoder), _identity(tokenizer))]
    return hashlib.sha256("\x1f".join([*texts, *map(str, settings)]).encode()).hexdigest()


def _identity(tokenizer: Any) -> str:
    """Everything that decides which ids a tokenizer gives, padding included."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return f"{type(tokenizer).__name__}\x1e{tokenizer.pad_token_id}"
    table = json.loads(backend.to_str())
    # How the last caller had it cut and pad, a preview for one. We do neither, see token_windows.
    table |= {"truncation": None, "padding": None}
    return f"{json.dumps(table, sort_keys=True)}\x1e{tokenizer.pad_token_id}"
