"""Textual inversion (arXiv:2208.01618): a new word for a text encoder, all else frozen.

The vectors are a parameter of their own beside the encoder's table, so no update, weight decay included, can
touch another word. A word of n vectors is n tokens, named as diffusers does: trigger, trigger_1, ...

Legend: B prompts, L tokens, D embedding width, n vectors of the word.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn

from toolkit.errors import ModelError, Problem, RunError
from toolkit.metadata import seal
from toolkit.runs import atomic

A1111_TOKEN = 265  # of "*": what the original implementation learned, and what readers of .pt expect


class ExtendedEmbedding(nn.Module):
    """An embedding table whose last n rows are learned: ids from the table's end on mean the new vectors."""

    def __init__(self, base: nn.Embedding, vectors: Tensor) -> None:
        super().__init__()
        # In this order: an encoder's dtype is read from its first parameter, and must stay that of the table.
        self.base = base
        self.learned = nn.Embedding.from_pretrained(
            vectors.to(base.weight.device, torch.float32), freeze=False
        )

    @property
    def vectors(self) -> nn.Parameter:
        """The new vectors (n, D), float32."""
        return self.learned.weight  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        """The table itself, as code that looks for a width or a dtype asks for it."""
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, L) -> embeddings (B, L, D) in the table's dtype."""
        end = self.base.num_embeddings
        is_new = ids >= end
        known = self.base(ids.masked_fill(is_new, 0))
        learned = self.learned((ids - end).clamp(min=0)).to(known.dtype)
        return torch.where(is_new[..., None], learned, known)


@dataclass(frozen=True)
class TextualInversion:
    """A word in training. layers: text encoder's name -> its table with the word's vectors."""

    trigger: str
    layers: dict[str, ExtendedEmbedding]

    @property
    def num_vectors(self) -> int:
        """n."""
        return len(next(iter(self.layers.values())).vectors)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The vectors (n, D) of each encoder, by a name for checkpoints."""
        return {f"embedding.{name}": layer.vectors for name, layer in self.layers.items()}


def attach_embedding(
    text_encoders: Mapping[str, nn.Module],
    tokenizers: Mapping[str, Any],
    *,
    trigger: str,
    num_vectors: int,
    init_words: str,
) -> TextualInversion:
    """Teach tokenizers and encoders a word whose vectors begin as those of init_words.

    Encoders and tokenizers are paired in their order. Attach after a network, which freezes what it finds.
    Raises ModelError if the model knows the trigger already.
    """
    layers = {}
    for (name, encoder), tokenizer in zip(text_encoders.items(), tokenizers.values(), strict=True):
        _add_tokens(tokenizer, trigger, num_vectors)
        table = encoder.get_input_embeddings()  # type: ignore[operator]
        ids = tokenizer(init_words, add_special_tokens=False).input_ids
        layers[name] = ExtendedEmbedding(table, spread(table.weight.detach().float()[ids], num_vectors))
        encoder.set_input_embeddings(layers[name])  # type: ignore[operator]
        _find_ends_by_id(encoder, tokenizer.eos_token_id)
    return TextualInversion(trigger, layers)


def _add_tokens(tokenizer: Any, trigger: str, num_vectors: int) -> None:
    known = tokenizer.get_vocab()
    names = [trigger, *(f"{trigger}_{index}" for index in range(1, num_vectors))]
    taken = [name for name in names if name in known or f"{name}</w>" in known]
    if taken:
        message = f"'{taken[0]}' is a word that this model knows already"
        raise ModelError(
            Problem("model.known_word", message, key="embedding.trigger", remedy="invent another one")
        )
    tokenizer.add_tokens(names)


def spread(rows: Tensor, count: int) -> Tensor:
    """rows (k, D) -> (count, D), all of them used: more than count are averaged with their neighbours, fewer
    are taken in turn, again from the first."""
    given = len(rows)
    if given <= count:
        return torch.stack([rows[index % given] for index in range(count)])
    edges = [index * given // count for index in range(count + 1)]
    return torch.stack([rows[first:last].mean(0) for first, last in zip(edges, edges[1:], strict=False)])


def _find_ends_by_id(encoder: nn.Module, end: int) -> None:
    """Pool at the end mark. Where old configs give it as 2 the highest id counts, which a new word has."""
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) == 2:
            module.eos_token_id = end  # type: ignore[assignment]


def save_embedding(
    inversion: TextualInversion,
    path: Path,
    *,
    keys: Sequence[str],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    step: int,
) -> None:
    """Write the vectors as stable-diffusion-webui and diffusers read them, whole or not at all.

    keys: the encoders' names in the file. The path's suffix says the format: .safetensors, or .pt (with one
    encoder the webui's string_to_param). Raises RunError if a vector is not finite in `dtype`.
    """
    tensors = {}
    for key, layer in zip(keys, inversion.layers.values(), strict=True):
        tensors[key] = layer.vectors.detach().to("cpu", dtype).contiguous()
        if not torch.isfinite(tensors[key]).all():
            message = f"the vectors {key} are not finite as {str(dtype).removeprefix('torch.')}"
            remedy = "lower train.embedding_lr, or save as bf16 or float32"
            raise RunError(Problem("embedding.not_finite", message, key="save.dtype", remedy=remedy))
    if path.suffix == ".pt":
        atomic.write_bytes(path, _pickled(inversion.trigger, tensors, step))
    else:
        atomic.write_bytes(path, seal(serialize(tensors), metadata))


def _pickled(trigger: str, tensors: dict[str, Tensor], step: int) -> bytes:
    content: dict[str, Any] = tensors
    if len(tensors) == 1:
        (vectors,) = tensors.values()
        content = {
            "string_to_token": {"*": A1111_TOKEN}, "string_to_param": {"*": vectors}, "name": trigger,
            "step": step, "sd_checkpoint": None, "sd_checkpoint_name": None,
        }  # fmt: skip
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
