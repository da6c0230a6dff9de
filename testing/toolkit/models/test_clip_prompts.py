"""Prompts beyond CLIP's window: cut into windows of their own and joined, as kohya's trainers do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from testing.tiny_models import BOS, EOS, MAX_LENGTH, tiny_tokenizer
from toolkit.errors import ModelError
from toolkit.models.sd15.loading import load
from toolkit.models.shared.clip_prompts import join_windows, token_windows, windows_needed

ROOM = MAX_LENGTH - 2
TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(tiny_folder)


def kohya_windows(tokenizer, prompt: str, num_windows: int) -> list[list[int]]:
    """kohya's way, for tokenizers that pad with the end mark: pad to 75 n + 2, cut, put marks around."""
    total = num_windows * ROOM + 2
    ids = tokenizer(prompt, padding="max_length", truncation=True, max_length=total).input_ids
    return [[ids[0], *ids[start : start + ROOM], ids[-1]] for start in range(1, total - 1, ROOM)]


@given(st.lists(st.sampled_from(["a", "red", "cat", "circle", "zq"]), max_size=3 * ROOM // 2))
def test_windows_are_those_of_kohya(words):
    prompt = " ".join(words)
    windows = token_windows(TOKENIZER, [prompt], length=MAX_LENGTH, num_windows=1)
    assert windows[0].tolist() == kohya_windows(TOKENIZER, prompt, windows.shape[1])


@pytest.mark.parametrize(("words", "expected"), [(0, 1), (ROOM, 1), (ROOM + 1, 2), (2 * ROOM, 2), (42, 3)])
def test_as_many_windows_as_the_prompt_needs(words, expected):
    windows = token_windows(TOKENIZER, ["cat " * words], length=MAX_LENGTH, num_windows=1)
    assert windows.shape == (1, expected, MAX_LENGTH)
    assert windows_needed(words + 2, MAX_LENGTH) == expected


def test_another_padding_token_stands_after_the_end_mark_alone():
    tokenizer = tiny_tokenizer(pad_token="!")
    begin, end, pad = (tokenizer.convert_tokens_to_ids(token) for token in (BOS, EOS, "!"))
    cat = tokenizer.convert_tokens_to_ids("cat</w>")
    first, second = token_windows(tokenizer, ["cat " * ROOM], length=MAX_LENGTH, num_windows=2)[0].tolist()
    assert first == [begin, *[cat] * ROOM, end]
    assert second == [begin, end, *[pad] * ROOM]


def test_joined_states_keep_one_begin_and_one_end(model):
    model.num_windows = 2
    prompt = "red " * ROOM + "cat dog"
    embeds = model.encode_prompts([prompt]).embeds
    model.num_windows = 1
    halves = [model.encode_prompts([part]).embeds for part in ("red " * ROOM, "cat dog")]
    assert embeds.shape == (1, 2 * ROOM + 2, 24)
    expected = torch.cat([halves[0][:, :-1], halves[1][:, 1:]], dim=1)
    torch.testing.assert_close(embeds, expected)
    assert torch.equal(join_windows(halves[0], 1), halves[0])


def test_all_prompts_get_the_length_of_the_longest(model):
    embeds = model.encode_prompts(["a cat", "cat " * (ROOM + 1)]).embeds
    assert embeds.shape == (2, 2 * ROOM + 2, 24)
    assert not torch.equal(embeds[0], embeds[1])


def test_a_prompt_beyond_all_windows_is_refused_and_never_cut(model):
    with pytest.raises(ModelError, match=f"has {3 * ROOM + 1} tokens, at most {3 * ROOM} can be read"):
        model.encode_prompts(["cat " * (3 * ROOM + 1)])


def test_the_hash_follows_the_number_of_windows(model):
    before = model.text_encoder_hash
    model.num_windows = 2
    assert model.text_encoder_hash != before
    model.num_windows = 1
    assert model.text_encoder_hash == before
