"""What Stable Diffusion XL does beyond Stable Diffusion 1.x: values against diffusers' pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from testing.tiny_models import MAX_LENGTH, build_tiny_sdxl, edit_json
from testing.toolkit.models.test_architectures import drawn, drawn_by, sample
from toolkit.data.items import Batch, Bucket, MediaItem, Placement
from toolkit.errors import ModelError
from toolkit.models.sdxl.loading import load
from toolkit.models.sdxl.model import SDXL
from toolkit.models.sdxl.sizes import SIZE_IDS, size_ids
from toolkit.training.previews import preview_context, render

ROOM = MAX_LENGTH - 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="module")
def model(folder: Path) -> SDXL:
    return load(folder)


def noise(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def item(
    placement: Placement = Placement(32, 32, 0, 0),
    size: tuple[int, int] | None = None,
    bucket: Bucket = Bucket(32, 32),
) -> MediaItem:
    return MediaItem("1", Path("a.png"), "1", "a cat", "d", bucket, placement, source_size=size)


def batch_of(*items: MediaItem) -> Batch:
    return Batch(items=items, captions=("a cat",) * len(items), weights=torch.ones(len(items)))


# -- prompts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["a red circle", "", "x" * (ROOM - 1)])
def test_embeds_and_pooled_are_those_of_the_pipeline(model, prompt):
    ours = model.encode_prompts([prompt, "blue cat"])
    embeds, negative, pooled, negative_pooled = model.pipeline().encode_prompt(
        prompt, negative_prompt="blue cat"
    )
    assert ours.embeds.shape == (2, MAX_LENGTH, 24 + 32) and ours.pooled.shape == (2, 20)
    torch.testing.assert_close(ours.embeds, torch.cat([embeds, negative]))
    torch.testing.assert_close(ours.pooled, torch.cat([pooled, negative_pooled]))


def test_each_tokenizer_pads_in_its_own_way(model):
    first, second = model._windows(["a cat"])
    assert torch.equal(first[..., :4], second[..., :4])
    assert first[0, 0, -1] == model.tokenizers["tokenizer"].eos_token_id
    assert second[0, 0, -1] == model.tokenizers["tokenizer_2"].convert_tokens_to_ids("!")


def test_a_long_prompt_is_joined_of_windows_and_pooled_from_the_first(model):
    ours = model.encode_prompts(["red " * ROOM + "cat dog"])
    first, second = (model.encode_prompts([part]) for part in ("red " * ROOM, "cat dog"))
    assert ours.embeds.shape == (1, 2 * ROOM + 2, 24 + 32)
    torch.testing.assert_close(ours.embeds, torch.cat([first.embeds[:, :-1], second.embeds[:, 1:]], dim=1))
    torch.testing.assert_close(ours.pooled, first.pooled)
    with pytest.raises(ModelError, match=f"has {3 * ROOM + 1} tokens, at most {3 * ROOM} can be read"):
        model.encode_prompts(["cat " * (3 * ROOM + 1)])


def test_vocabularies_that_cut_a_prompt_differently_still_give_equally_many_windows(folder):
    model = load(folder)
    model.tokenizers["tokenizer_2"].add_tokens(["zebra"])
    model.text_encoders["text_encoder_2"].resize_token_embeddings(len(model.tokenizers["tokenizer_2"]))
    prompt = "zebra " * 4
    assert model.count_tokens(prompt) == 4 * len("zebra") + 2
    assert model.windows_needed(prompt) == 2
    assert model.encode_prompts([prompt]).embeds.shape == (1, 2 * ROOM + 2, 24 + 32)


def test_pictures_beside_a_prompt_and_prompts_without_pooled_embeddings_are_refused(model):
    with pytest.raises(ValueError, match="reads no images"):
        model.encode_prompts(["a cat"], images=[torch.zeros(3, 8, 8)])
    from toolkit.prompt_utils import Conditioning

    with pytest.raises(ValueError, match="needs the pooled embeddings"):
        model.predict(noise(1), torch.tensor([0.5]), Conditioning(model.encode_prompts(["a"]).embeds))


def test_gradients_reach_all_that_the_unet_hears_of_both_encoders(folder):
    model = load(folder)
    for encoder in model.text_encoders.values():
        encoder.requires_grad_(True)
    conditioning = model.encode_prompts(["a cat"])
    model.predict(noise(1), torch.tensor([0.5]), conditioning).square().sum().backward()
    reached = {
        name: {key for key, p in encoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        for name, encoder in model.text_encoders.items()
    }
    # The first encoder's last layer is not heard; the second's is, through its projection.
    assert not any("layers.1." in key for key in reached["text_encoder"])
    assert any("layers.0.self_attn.q_proj" in key for key in reached["text_encoder"])
    assert any("layers.2.self_attn.q_proj" in key for key in reached["text_encoder_2"])
    assert "text_projection.weight" in reached["text_encoder_2"]


def test_recomputed_activations_give_the_same_states_and_gradients(folder):
    results = []
    for checkpointed in (False, True):
        model = load(folder)
        for encoder in model.text_encoders.values():
            encoder.requires_grad_(True).train()
            if checkpointed:
                encoder.gradient_checkpointing_enable()
        conditioning = model.encode_prompts(["a cat"])
        (conditioning.embeds.square().sum() + conditioning.pooled.square().sum()).backward()
        gradients = {
            f"{name}.{key}": p.grad
            for name, encoder in model.text_encoders.items()
            for key, p in encoder.named_parameters()
            if p.grad is not None
        }
        results.append((conditioning.embeds, gradients))
    (one, first), (two, second) = results
    torch.testing.assert_close(one, two)
    assert first.keys() == second.keys()
    for key, gradient in first.items():
        torch.testing.assert_close(gradient, second[key])


# -- sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placement", "size", "bucket", "expected"),
    [
        (Placement(32, 32, 0, 0), None, Bucket(32, 32), [32, 32, 0, 0, 32, 32]),
        (Placement(48, 36, 8, 2), (640, 480), Bucket(32, 32), [480, 640, 2, 8, 32, 32]),
        (Placement(64, 32, 5, 0), (3473, 1737), Bucket(48, 32), [1737, 3473, 0, 5, 32, 48]),
        # The picture is flipped after it was cut: what was right of the crop is then left of it.
        (Placement(48, 36, 8, 1, flip_x=True), (96, 72), Bucket(32, 32), [72, 96, 1, 8, 32, 32]),
        (Placement(48, 36, 5, 1, flip_x=True), (96, 72), Bucket(32, 32), [72, 96, 1, 11, 32, 32]),
        (Placement(48, 36, 5, 1, flip_y=True), (96, 72), Bucket(32, 32), [72, 96, 3, 5, 32, 32]),
    ],
)
def test_sizes_are_of_the_original_the_crop_and_the_bucket(placement, size, bucket, expected):
    assert size_ids([item(placement, size, bucket)]).tolist() == [expected]


def test_a_batch_tells_the_sizes_of_its_own_pictures(model):
    batch = batch_of(item(), item(Placement(48, 36, 8, 2), (640, 480)))
    plain = model.encode_prompts(["a cat"] * 2)
    told = model.condition_items(plain, batch)
    assert told.extra[SIZE_IDS].tolist() == [[32, 32, 0, 0, 32, 32], [480, 640, 2, 8, 32, 32]]
    assert told.embeds is plain.embeds and told.pooled is plain.pooled and SIZE_IDS not in plain.extra
    t = torch.tensor([0.5, 0.5])
    same, other = model.predict(noise(), t, told), model.predict(noise(), t, plain)
    # The first picture is whole, which is what is taken for granted where nothing is said.
    assert torch.equal(same[0], other[0])
    assert not torch.allclose(same[1], other[1], atol=1e-4)


@pytest.mark.parametrize(
    "change", [{"size": (65, 64)}, {"placement": Placement(40, 32, 8, 0)}, {"placement": Placement(32, 40, 0, 8)}]
)
def test_each_size_counts(model, change):
    def predict(one: MediaItem) -> torch.Tensor:
        conditioning = model.condition_items(model.encode_prompts(["a cat"]), batch_of(one))
        return model.predict(noise(1), torch.tensor([0.5]), conditioning)

    assert not torch.allclose(predict(item(size=(64, 64))), predict(item(**({"size": (64, 64)} | change))))


def test_predict_is_the_unet_called_as_the_pipeline_calls_it(model):
    conditioning = model.condition_items(
        model.encode_prompts(["a cat", "a dog"]), batch_of(*[item(Placement(48, 36, 8, 2), (640, 480))] * 2)
    )
    ids = model.pipeline()._get_add_time_ids(
        (480, 640), (2, 8), (32, 32), dtype=torch.float32, text_encoder_projection_dim=20
    )
    expected = model.unet(
        noise(),
        torch.tensor([499, 999]),
        encoder_hidden_states=conditioning.embeds,
        added_cond_kwargs={"text_embeds": conditioning.pooled, "time_ids": ids.repeat(2, 1)},
    ).sample
    assert torch.equal(model.predict(noise(), torch.tensor([0.5, 1.0]), conditioning), expected)


def test_sizes_stay_exact_in_half_precision(folder, model):
    """bfloat16 has no 3473: cast to it, these sizes would be those of another picture."""
    exact = model.condition_items(model.encode_prompts(["a"]), batch_of(item(size=(3473, 3473))))
    cast = exact.to(dtype=torch.bfloat16)
    assert cast.embeds.dtype == torch.bfloat16 and cast.extra[SIZE_IDS].tolist()[0][0] == 3473
    rounded = load(folder, dtype=torch.bfloat16)
    t = torch.tensor([0.5])
    heard = []
    rounded.unet.add_time_proj.register_forward_hook(lambda _, inputs, __: heard.extend(inputs[0].tolist()))
    rounded.predict(noise(1), t, cast)
    assert heard == [3473, 3473, 0, 0, 32, 32]


# -- previews ------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_drawn_whole(model):
    """diffusers' pipeline cuts it silently; so its last words must not be the pipeline's business."""
    start = "red " * ROOM
    pipeline = model.pipeline()
    assert drawn_by(pipeline, sample(prompt=start + "cat")) == drawn_by(pipeline, sample(prompt=start + "dog"))
    assert drawn(model, sample(prompt=start + "cat")) != drawn(model, sample(prompt=start + "dog"))
    assert drawn(model, sample(neg=start + "cat")) != drawn(model, sample(neg=start + "dog"))


def test_guidance_below_one_and_rescaled_guidance_are_drawn(model):
    pictures = {drawn(model, sample(**change)) for change in ({}, {"guidance_scale": 1.0}, {"guidance_rescale": 0.7})}
    assert len(pictures) == 3


# -- the autoencoder in half precision -----------------------------------------------------------------------


def overflowing(folder: Path, tmp_path: Path, **config: bool) -> SDXL:
    """A model in float16 whose autoencoder has activations beyond 65504, as that of SDXL has."""
    model = load(folder)
    with torch.no_grad():
        for side in (model.vae.encoder, model.vae.decoder):
            side.conv_in.weight.mul_(2e5)
            side.conv_in.bias.mul_(2e5)
    model.save_pretrained(tmp_path / "overflows", dtype=torch.float16)
    edit_json(tmp_path / "overflows" / "vae" / "config.json", **config)
    return load(tmp_path / "overflows", dtype=torch.float16)


def pixels() -> torch.Tensor:
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_an_autoencoder_that_overflows_in_half_precision_computes_in_float32(folder, tmp_path):
    model = overflowing(folder, tmp_path)
    latents = model.encode_images(pixels())
    assert torch.isfinite(latents).all() and model.vae.dtype == torch.float16
    wide = load(tmp_path / "overflows")
    torch.testing.assert_close(latents, wide.encode_images(pixels()))
    torch.testing.assert_close(model.decode_latents(latents), wide.decode_latents(latents))
    edit_json(tmp_path / "overflows" / "vae" / "config.json", force_upcast=False)
    fixed = load(tmp_path / "overflows", dtype=torch.float16)
    assert not torch.isfinite(fixed.encode_images(pixels())).all()


def test_autocast_does_not_reach_the_autoencoder(folder, tmp_path):
    model = overflowing(folder, tmp_path)
    with torch.autocast("cpu", torch.float16):
        latents = model.encode_images(pixels())
        decoded = model.decode_latents(latents)
    assert torch.isfinite(latents).all() and torch.isfinite(decoded).all()


def test_a_preview_under_autocast_is_decoded_in_float32(folder, tmp_path):
    model = overflowing(folder, tmp_path)

    def autocast():
        return torch.autocast("cpu", torch.float16)

    with preview_context(model, autocast=autocast):
        picture = next(render(model, [sample()]))
        own = model.pipeline()(
            "a red circle", width=32, height=32, num_inference_steps=2, output_type="np",
            generator=torch.Generator().manual_seed(3),
        ).images[0]  # fmt: skip
    assert np.isnan(own).all(), "what the pipeline decodes by itself; else this test shows nothing"
    low, high = picture.convert("L").getextrema()
    assert low < high
    assert model.vae.dtype == torch.float16


def test_another_autoencoder_decides_for_itself(folder, tmp_path):
    """The usual remedy: an autoencoder whose activations were made small, and that says so."""
    other = build_tiny_sdxl(tmp_path / "other", seed=1)
    edit_json(other / "vae" / "config.json", force_upcast=False)
    model = load(folder, dtype=torch.float16, vae_path=str(other / "vae"))
    seen = []
    model.vae.encoder.conv_in.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].dtype))
    model.encode_images(pixels())
    load(folder, dtype=torch.float16).encode_images(pixels())
    assert seen == [torch.float16] and model.vae_hash == load(other, dtype=torch.float16).vae_hash
