"""Tokens counted without transformers, against transformers' own tokenizers."""

from __future__ import annotations

import json
import string
from functools import partial
from pathlib import Path

import pytest
from transformers import CLIPTokenizer, T5Tokenizer

from jobs.preflight_process import make_counters
from testing.tiny_models import (
    MAX_LENGTH,
    build_tiny_sd15,
    build_tiny_sdxl,
    build_tiny_ssd,
    tiny_flux_pipeline,
    tiny_tokenizer,
)
from toolkit.config_modules.model import ModelConfig
from toolkit.errors import ModelError
from toolkit.models.catalogue import ARCHITECTURES, PromptReader, find_architecture
from toolkit.models.prompt_limits import long_prompt
from toolkit.paths import EMBEDDED_MODELS
from toolkit.preflight.tokens import make_counter, read_tokenizer

TEXTS = [
    "", "a photo of a red circle", "A  Photo\tof\n a CAT", "it's we'll don't", "naïve café, 日本 🙂",
    "2024-x7 (((art)))",
    "<|endoftext|> in the middle", "zrbcat zrbcat_1", "e\u0301 e\u0301", "under_score a.b.c",
]  # fmt: skip
READER = PromptReader("tokenizer", "text_encoder", windows=3)
EMBEDDED = EMBEDDED_MODELS["tiny-sd"] / "tokenizer"


def bare_count(tokenizer: CLIPTokenizer, text: str) -> int:
    return len(tokenizer(text, truncation=False, verbose=False).input_ids) - 2


def old_files(folder: Path) -> Path:
    """The tokenizer of tiny-sd as vocab.json and merges.txt, as older models have it."""
    model = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_the_embedded_tokenizer_counts_as_transformers_does(text):
    counter = make_counter([EMBEDDED], READER)
    assert counter.count([text]) == [bare_count(CLIPTokenizer.from_pretrained(EMBEDDED), text)]


def test_the_files_of_older_models_count_the_same(tmp_path):
    folder = old_files(tmp_path / "tokenizer")
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = [tuple(line.split(" ")) for line in (folder / "merges.txt").read_text("utf-8").splitlines()[1:]]
    theirs = CLIPTokenizer(vocabulary, merges)
    ours = make_counter([tmp_path / "none", folder], READER)
    assert ours.count(TEXTS) == [bare_count(theirs, text) for text in TEXTS]
    assert ours.count(TEXTS) == make_counter([EMBEDDED], READER).count(TEXTS)


def test_the_window_is_the_smallest_that_anybody_says(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    counter = make_counter([tmp_path / "tokenizer"], READER)
    assert (counter.room, counter.limit) == (MAX_LENGTH - 2, 3 * (MAX_LENGTH - 2))
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 10}))
    assert make_counter([tmp_path / "tokenizer"], READER, tmp_path / "config.json").room == 8
    assert make_counter([old_files(tmp_path / "old")], READER).room == 75
    assert [counter.windows_of(n) for n in (0, 14, 15, 42)] == [1, 1, 2, 3]


def build_flux(folder: Path, *, schnell: bool = False) -> Path:
    """A tiny FLUX.1 with T5's own kind of tokenizer."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581a", "\u2581cat", *string.ascii_lowercase]
    pipeline = tiny_flux_pipeline(schnell=schnell)
    vocabulary = [(piece, -1.0) for piece in pieces]
    pipeline.tokenizer_2 = T5Tokenizer(vocabulary, extra_ids=0, model_max_length=512)
    pipeline.save_pretrained(folder)
    return folder


MODELS = {
    "sd15": build_tiny_sd15, "sdxl": build_tiny_sdxl, "ssd": build_tiny_ssd, "flux": build_flux,
    "flux schnell": partial(build_flux, schnell=True),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_the_check_counts_as_the_model_does(tmp_path, case):
    folder = MODELS[case](tmp_path / "model")
    arch = case.split()[0]
    model = find_architecture(arch).load()(folder)
    counters = make_counters(ModelConfig(name_or_path=str(folder), arch=arch))
    assert len(counters) == len(find_architecture(arch).prompt_readers) > 0
    longest = min(counter.limit for counter in counters)
    at_the_limit = ["a " * (longest + more) for more in (-2, -1, 0, 1)]
    for text in ["", "a cat", "a cat " * 9, "a cat " * 40, *at_the_limit]:
        lengths = [counter.count([text])[0] for counter in counters]
        fits = all(length <= counter.limit for length, counter in zip(lengths, counters, strict=True))
        assert fits == (model.windows_needed(text) <= model.max_windows)
        if not fits:
            with pytest.raises(ModelError) as caught:
                model.encode_prompts([text])
            said = {long_prompt(text, n, c.limit).message for n, c in zip(lengths, counters, strict=True)}
            assert caught.value.problems[0].message in said


def test_every_architecture_says_what_bounds_its_prompts():
    assert all(entry.prompt_readers for entry in ARCHITECTURES.values() if entry.supported)


def test_an_added_word_counts_as_its_vectors():
    (plain,) = make_counter([EMBEDDED], READER).count(["a circle"])
    counter = make_counter([EMBEDDED], READER, words={"zrbword": 4})
    assert counter.count(["a circle zrbword", "zrbword ZRBWORD"]) == [plain + 4, 8]


def test_no_tokenizer_and_damaged_ones_are_none(tmp_path):
    assert read_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{")
    assert read_tokenizer(tmp_path) is None
    assert make_counter([tmp_path], READER) is None
