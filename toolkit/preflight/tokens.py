"""How many tokens a prompt has, counted by the model's own tokenizer alone. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.models.catalogue import PromptReader
from toolkit.models.geometry import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What a CLIP prompt is split into before its words are split into tokens: openai/CLIP, simple_tokenizer.py.
_CLIP_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class TokenCounter:
    """Counts tokens as one text encoder reads them, in the terms in which a user is told.

    room: tokens of one window; windows: how many are read; marks: how many of each prompt are its end's.
    words: an added word -> its number of vectors.
    """

    tokenizer: Tokenizer
    name: str
    room: int
    windows: int
    words: Mapping[str, int]
    marks: int = 0

    @property
    def limit(self) -> int:
        """The longest prompt that can be read whole, in tokens."""
        return self.room * self.windows

    def count(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt."""
        encoded = self.tokenizer.encode_batch(list(prompts), add_special_tokens=False)
        counts = [len(each.ids) + self.marks for each in encoded]
        for word, num_vectors in self.words.items():
            pattern = re.compile(re.escape(word), re.IGNORECASE)
            for index, prompt in enumerate(prompts):
                counts[index] += (num_vectors - 1) * len(pattern.findall(prompt))
        return counts

    def windows_of(self, num_tokens: int) -> int:
        """How many windows hold so many tokens."""
        return max(1, -(-num_tokens // self.room))


def make_counter(
    folders: Iterable[Path],
    reader: PromptReader,
    encoder_config: Path | None = None,
    words: Mapping[str, int] | None = None,
) -> TokenCounter | None:
    """The counter of a text encoder by the first folder that holds a tokenizer; None if none can be read.

    encoder_config: the encoder's config.json, which may bound the window; words: see TokenCounter.
    """
    for folder in folders:
        tokenizer = read_tokenizer(folder)
        if tokenizer is None:
            continue
        words = dict(words or {})
        if words:
            tokenizer.add_tokens(sorted(words))
        told = reader.marks if reader.counts_marks else 0
        room = _window(folder, encoder_config, reader) - reader.marks + told
        return TokenCounter(tokenizer, reader.tokenizer, room, reader.windows, words, told)
    return None


def _window(folder: Path, encoder_config: Path | None, reader: PromptReader) -> int:
    """Tokens of one window with its marks: the least that reader, tokenizer and encoder say."""
    said: list[Any] = [read_json(folder / "tokenizer_config.json").get("model_max_length")]
    if encoder_config is not None:
        said.append(read_json(encoder_config).get("max_position_embeddings"))
    return min([reader.length, *(int(n) for n in said if isinstance(n, int | float) and n > reader.marks)])


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder: tokenizer.json, or CLIP's vocab.json and merges.txt; None without them.

    Truncation and padding are off. Damaged files count as none: loading the model names them.
    """
    from tokenizers import Tokenizer

    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            tokenizer = _clip_tokenizer(folder)
        else:
            return None
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for every damaged file
        if type(error) is not Exception and not isinstance(error, OSError | ValueError):
            raise
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _clip_tokenizer(folder: Path) -> Tokenizer:
    """CLIP's byte-level BPE from its two files."""
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    end = "<|endoftext|>"
    model = BPE.from_file(
        str(folder / "vocab.json"), str(folder / "merges.txt"),
        unk_token=end, end_of_word_suffix="</w>", continuing_subword_prefix="", fuse_unk=False,
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_CLIP_SPLIT), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.add_special_tokens([AddedToken("<|startoftext|>"), AddedToken(end)])
    return tokenizer
