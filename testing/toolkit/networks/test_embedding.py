"""A new word in a text encoder: what begins, what learns, what never changes, and who can read the file."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn

from toolkit.errors import ModelError, RunError
from toolkit.metadata import read_metadata
from toolkit.models.sd15.model import SD15
from toolkit.models.shared.clip_prompts import spell_out
from toolkit.models.shared.families import Components
from toolkit.networks.embedding import (
    ExtendedEmbedding,
    TextualInversion,
    attach_embedding,
    save_embedding,
    spread,
)
from toolkit.seeding import keyed_generator

PROMPTS = ["a zwx on white", "zwx zwx", "a cat"]
KEYS = ("emb_params",)


def architecture(pipeline: StableDiffusionPipeline) -> SD15:
    modules = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder")}
    return SD15(
        Components(modules, {"tokenizer": pipeline.tokenizer}, dict(pipeline.scheduler.config))
    ).freeze()


def attach(
    model: SD15, trigger: str = "zwx", num_vectors: int = 3, init_words: str = "red cat"
) -> TextualInversion:
    return attach_embedding(
        model.text_encoders, model.tokenizers, trigger=trigger, num_vectors=num_vectors, init_words=init_words
    )


@pytest.fixture
def model(new_pipeline) -> SD15:
    return architecture(new_pipeline())


@pytest.fixture
def learned(model) -> TextualInversion:
    inversion = attach(model)
    with torch.no_grad():
        for vectors in inversion.named_parameters().values():
            vectors.normal_(std=0.1, generator=keyed_generator("test", "vectors"))
    return inversion


def encode(model: SD15, prompts=PROMPTS) -> torch.Tensor:
    with torch.no_grad():
        return model.encode_prompts(list(prompts)).embeds


# -- the word --------------------------------------------------------------------------------------------


def test_the_vectors_begin_as_the_words_they_are_given(model):
    table = model.text_encoder.get_input_embeddings().weight
    red, cat = (table[model.tokenizer(w, add_special_tokens=False).input_ids[0]] for w in ("red", "cat"))
    before = encode(model, ["a red cat red"])
    inversion = attach(model)
    (vectors,) = inversion.named_parameters().values()
    assert torch.equal(vectors, torch.stack([red, cat, red]))
    # A word of the vectors of known words is those words.
    assert torch.equal(encode(model, ["a zwx"]), before)


def test_words_are_spread_over_the_vectors_and_none_is_dropped():
    rows = torch.arange(5.0)[:, None]
    assert spread(rows[:2], 5).flatten().tolist() == [0, 1, 0, 1, 0]
    assert spread(rows, 5).flatten().tolist() == [0, 1, 2, 3, 4]
    assert spread(rows, 2).flatten().tolist() == [0.5, 3.0]  # of 0 and 1, of 2, 3 and 4
    assert spread(rows, 1).flatten().tolist() == [2.0]


@pytest.mark.parametrize("trigger", ["cat", "red"])
def test_a_word_that_the_model_knows_is_refused(model, trigger):
    with pytest.raises(ModelError, match="knows already"):
        attach(model, trigger=trigger)


def test_a_word_is_spelled_out_as_diffusers_does(new_pipeline, learned, model):
    pipeline = model.pipeline()
    for prompt in ("a zwx on", "zwx", "a cat", "zwx, zwx"):
        assert spell_out(model.tokenizer, prompt) == pipeline.maybe_convert_prompt(prompt, model.tokenizer)
    once = spell_out(model.tokenizer, "a zwx")
    assert once == "a zwx zwx_1 zwx_2" == spell_out(model.tokenizer, once)
    assert model.count_tokens("a zwx") == 2 + 1 + 3


def test_prompts_without_the_word_are_as_before(model):
    before = encode(model, ["a cat", ""])
    inversion = attach(model)
    with torch.no_grad():
        inversion.layers["text_encoder"].vectors.fill_(9.0)
    assert torch.equal(encode(model, ["a cat", ""]), before)


def test_pooling_finds_the_end_mark_also_where_an_old_config_goes_by_the_highest_id(new_pipeline):
    old, new = architecture(new_pipeline()), architecture(new_pipeline())
    for module in old.text_encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = 2
    attach(old), attach(new)
    ids = old.tokenizer(spell_out(old.tokenizer, "a zwx on white"), return_tensors="pt").input_ids
    with torch.no_grad():
        one, two = (m.text_encoder(ids).pooler_output for m in (old, new))
    assert torch.equal(one, two)


# -- learning --------------------------------------------------------------------------------------------


def test_only_the_new_vectors_learn_whatever_the_optimizer_decays(model):
    inversion = attach(model)
    frozen = {
        name: p.detach().clone() for name, p in model.text_encoder.named_parameters() if "learned" not in name
    }
    frozen |= {f"unet.{name}": p.detach().clone() for name, p in model.unet.named_parameters()}
    (vectors,) = inversion.named_parameters().values()
    start = vectors.detach().clone()
    optimizer = torch.optim.AdamW([vectors], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        noisy, t = torch.ones(1, 4, 8, 8), torch.tensor([0.5])
        model.predict(noisy, t, model.encode_prompts(["a zwx"])).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.allclose(vectors, start, atol=1e-2)
    now = dict(model.text_encoder.named_parameters()) | {
        f"unet.{name}": p for name, p in model.unet.named_parameters()
    }
    assert [name for name, value in frozen.items() if not torch.equal(now[name], value)] == []
    assert [name for name, p in now.items() if p.requires_grad] == [name for name in now if "learned" in name]


def test_a_half_precision_encoder_keeps_float32_vectors():
    table = nn.Embedding(10, 4).to(torch.bfloat16).requires_grad_(False)
    layer = ExtendedEmbedding(table, torch.zeros(2, 4))
    out = layer(torch.tensor([[1, 10, 11, 3]]))
    assert out.dtype == torch.bfloat16 and layer.vectors.dtype == torch.float32
    out.float().sum().backward()
    assert layer.vectors.grad.tolist() == [[1.0] * 4] * 2
    assert layer.weight is table.weight


def test_a_half_precision_model_draws_with_the_word(new_pipeline):
    """A pipeline takes the dtype of embeddings from the encoder's first parameter."""
    pipeline = new_pipeline().to(torch.bfloat16)
    model = architecture(pipeline)
    attach(model)
    assert model.text_encoder.dtype == torch.bfloat16
    images = model.pipeline()("a zwx", height=32, width=32, num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 32, 32, 3)


# -- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("num_vectors", [1, 3])
def test_diffusers_reads_the_file_and_predicts_the_same(new_pipeline, model, tmp_path, suffix, num_vectors):
    inversion = attach(model, num_vectors=num_vectors)
    with torch.no_grad():
        inversion.layers["text_encoder"].vectors.normal_(generator=keyed_generator("test", suffix))
    path = tmp_path / f"zwx{suffix}"
    save_embedding(inversion, path, keys=KEYS, dtype=torch.float32, metadata={"ss_steps": "3"}, step=3)
    judge = new_pipeline()
    # A .pt file says its own name, a .safetensors file does not.
    judge.load_textual_inversion(str(path), token="zwx" if suffix == ".safetensors" else None)
    ours = encode(model, ["a zwx on white"])
    theirs, _ = judge.encode_prompt("a zwx on white", "cpu", 1, do_classifier_free_guidance=False)
    assert torch.allclose(theirs, ours, atol=1e-6)
    noisy, t = torch.randn(1, 4, 8, 8, generator=keyed_generator("test", "x")), torch.tensor([0.5])
    with torch.no_grad():
        one = model.predict(noisy, t, model.encode_prompts(["a zwx on white"]))
        two = judge.unet(noisy, model.objective.timesteps(t), encoder_hidden_states=theirs).sample
    assert torch.allclose(one, two, atol=1e-5)


def test_what_is_in_the_files(learned, tmp_path):
    path = tmp_path / "zwx.safetensors"
    save_embedding(learned, path, keys=KEYS, dtype=torch.float16, metadata={"ss_steps": "3"}, step=3)
    tensors = load_file(path)
    assert list(tensors) == ["emb_params"] and tensors["emb_params"].dtype == torch.float16
    assert read_metadata(path)["ss_steps"] == "3" and "sshs_model_hash" in read_metadata(path)
    path = tmp_path / "zwx.pt"
    save_embedding(learned, path, keys=KEYS, dtype=torch.float32, metadata={}, step=3)
    content = torch.load(path, weights_only=True)
    assert content["name"] == "zwx" and content["step"] == 3
    assert torch.equal(content["string_to_param"]["*"], learned.layers["text_encoder"].vectors)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_two_encoders_are_two_tensors_in_the_order_of_the_keys(new_pipeline, tmp_path, suffix):
    first, second = new_pipeline(), new_pipeline()
    inversion = attach_embedding(
        {"text_encoder": first.text_encoder, "text_encoder_2": second.text_encoder},
        {"tokenizer": first.tokenizer, "tokenizer_2": deepcopy(first.tokenizer)},
        trigger="zwx", num_vectors=2, init_words="cat",
    )  # fmt: skip
    with torch.no_grad():
        inversion.layers["text_encoder_2"].vectors.fill_(2.0)
    path: Path = tmp_path / f"zwx{suffix}"
    save_embedding(inversion, path, keys=("clip_l", "clip_g"), dtype=torch.float32, metadata={}, step=0)
    content = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    assert sorted(content) == ["clip_g", "clip_l"]
    assert content["clip_g"].unique().tolist() == [2.0]


def test_vectors_that_do_not_fit_the_files_dtype_are_refused(learned, tmp_path):
    with torch.no_grad():
        learned.layers["text_encoder"].vectors[0, 0] = 1e6
    with pytest.raises(RunError, match="not finite as float16"):
        save_embedding(learned, tmp_path / "z.pt", keys=KEYS, dtype=torch.float16, metadata={}, step=0)
    assert list(tmp_path.iterdir()) == []
