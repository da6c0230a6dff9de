"""What a loaded Stable Diffusion 1.x does: values against diffusers' pipeline, saving, hashes."""

from __future__ import annotations

import stat

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from testing.tiny_models import MAX_LENGTH, build_tiny_sd15
from testing.toolkit.models.conftest import draw_with
from toolkit.config_modules.sample import SampleRequest
from toolkit.errors import RunError
from toolkit.models.base import Architecture
from toolkit.models.sd15.loading import load
from toolkit.models.sd15.model import SD15
from toolkit.models.shared.autoencoders import save_autoencoder
from toolkit.models.shared.components import component_hash
from toolkit.models.shared.samplers import make_scheduler

STEPS = 4
GUIDANCE = 3.0


@pytest.fixture(scope="module")
def model(tiny_folder) -> SD15:
    return load(tiny_folder)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_it_is_an_architecture(model):
    assert isinstance(model, Architecture)
    assert model.latent_spec.shape(32, 48) == (4, 8, 12)
    assert (model.latent_spec.downscale, model.latent_spec.size_multiple) == (4, 8)


# -- pictures ------------------------------------------------------------------------------------------------


def test_latents_are_the_scaled_mode_of_the_autoencoder(model, pixels):
    latents = model.encode_images(pixels)
    assert latents.shape == (2, 4, 8, 12)
    assert latents.dtype == torch.float32
    mean = model.vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(latents, mean * 0.5)
    assert torch.equal(latents, model.encode_images(pixels))


def test_decoding_undoes_the_scale(model, pixels):
    latents = model.encode_images(pixels)
    decoded = model.decode_latents(latents)
    assert decoded.shape == pixels.shape
    torch.testing.assert_close(decoded, model.vae.decode(model.vae.encode(pixels).latent_dist.mean).sample)


def test_a_shift_factor_is_taken_off_and_put_back(tiny_folder, pixels):
    model = load(tiny_folder)
    plain, decoded = model.encode_images(pixels), model.decode_latents(model.encode_images(pixels))
    model.vae.register_to_config(shift_factor=0.25)
    shifted = model.encode_images(pixels)
    torch.testing.assert_close(shifted, plain - 0.25 * 0.5)
    torch.testing.assert_close(model.decode_latents(shifted), decoded)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 1, 32, 32)])
def test_other_shapes_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"pixels must be \(B, 3, H, W\)"):
        model.encode_images(torch.zeros(shape))


# -- prompts -------------------------------------------------------------------------------------------------


def test_embeds_equal_those_of_the_pipeline(model):
    prompts = ["a red circle", ""]
    conditioning = model.encode_prompts(prompts)
    assert conditioning.embeds.shape == (2, MAX_LENGTH, 24)
    reference, negative = model.pipeline().encode_prompt(prompts[0], "cpu", 1, True)
    torch.testing.assert_close(conditioning.embeds[:1], reference)
    torch.testing.assert_close(conditioning.embeds[1:], negative)


def test_prompts_are_counted_with_their_marks(model):
    assert model.count_tokens("") == 2
    assert model.count_tokens("a red circle") == 5
    assert model.count_tokens("cat " * 100) == 102
    assert model.max_length == MAX_LENGTH


def test_gradients_flow_into_a_trained_text_encoder(tiny_folder):
    model = load(tiny_folder)
    model.text_encoder.requires_grad_(True)
    model.encode_prompts(["a cat"]).embeds.sum().backward()
    assert model.text_encoder.get_input_embeddings().weight.grad.abs().sum() > 0


def test_pictures_beside_a_prompt_are_refused(model):
    with pytest.raises(ValueError, match="reads no images"):
        model.encode_prompts(["a cat"], images=[torch.zeros(3, 8, 8)])


# -- denoising -----------------------------------------------------------------------------------------------


def test_predict_is_the_unet_at_the_index_of_t(model):
    generator = torch.Generator().manual_seed(2)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    conditioning = model.encode_prompts(["a cat", "a dog"])
    prediction = model.predict(noisy, torch.tensor([0.5, 1.0]), conditioning)
    index = torch.tensor([499, 999])
    expected = model.unet(noisy, index, encoder_hidden_states=conditioning.embeds).sample
    assert torch.equal(prediction, expected)


def test_predict_casts_in_and_out(tiny_folder, model):
    rounded = load(tiny_folder, dtype=torch.bfloat16)
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0.5])
    prediction = rounded.predict(noisy, t, rounded.encode_prompts(["a cat"]))
    assert prediction.dtype == torch.float32
    exact = model.predict(noisy, t, model.encode_prompts(["a cat"]))
    torch.testing.assert_close(prediction, exact, rtol=0.1, atol=0.05)


def ddim(model: SD15, latents: torch.Tensor, prompt: str) -> torch.Tensor:
    """DDIM (arXiv:2010.02502) through our own predict and objective, with diffusers' leading timesteps."""
    both = model.encode_prompts(["", prompt])
    stride = 1000 // STEPS
    indices = [stride * step + 1 for step in reversed(range(STEPS))]
    for index in indices:
        t = torch.full((2,), (index + 1) / 1000)
        unconditional, conditional = model.predict(latents.expand(2, -1, -1, -1), t, both).chunk(2)
        prediction = unconditional + GUIDANCE * (conditional - unconditional)
        clean = model.objective.denoised(latents, prediction, t[:1])
        alpha, sigma = model.objective.table.scales(t[:1], latents)
        noise = (latents - alpha * clean) / sigma
        # Below the last level the SD schedule goes to its first entry (set_alpha_to_one: false).
        before = torch.tensor([(max(index - stride, 0) + 1) / 1000])
        latents = model.objective.add_noise(clean, noise, before)
    return latents


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_our_ddim_equals_the_pipeline(tmp_path, prediction_type):
    model = load(build_tiny_sd15(tmp_path / "model", prediction_type=prediction_type))
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    pipeline = model.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a red circle",
        height=32,
        width=32,
        latents=start,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="latent",
    ).images
    with torch.no_grad():
        torch.testing.assert_close(ddim(model, start, "a red circle"), expected, rtol=1e-3, atol=1e-3)


def test_our_euler_equals_the_pipeline_of_a_flow_model(tiny_folder):
    model = load(tiny_folder, prediction_type="flow")
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    pipeline = model.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler("flowmatch", pipeline.scheduler.config)
    expected = pipeline(
        "a cat",
        height=32,
        width=32,
        latents=start,
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        output_type="latent",
    ).images
    sigmas = pipeline.scheduler.sigmas
    # The pipeline tells the network whole timesteps, 1000 sigma rounded down.
    told = pipeline.scheduler.timesteps / 1000
    latents, conditioning = start, model.encode_prompts(["a cat"])
    with torch.no_grad():
        for here, there, t in zip(sigmas[:-1], sigmas[1:], told, strict=True):
            latents = latents + (there - here) * model.predict(latents, t.reshape(1), conditioning)
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)


def test_a_long_prompt_is_drawn_whole(model):
    """diffusers' pipeline cuts it silently; so its last words must not be the pipeline's business."""
    start = "red " * (MAX_LENGTH - 2)
    pipeline = model.pipeline()

    def drawn(**arguments: str) -> torch.Tensor:
        shape = {"width": 32, "height": 32, "num_inference_steps": 2, "guidance_scale": GUIDANCE}
        picture = pipeline(**shape | arguments, generator=torch.Generator().manual_seed(0), output_type="pt")
        return picture.images

    def whole(prompt: str = "red", neg: str = "") -> torch.Tensor:
        request = SampleRequest(prompt, neg, 32, 32, 0, GUIDANCE, 0.0, 2, "ddpm", 1.0)
        return drawn(**model.sampling_arguments(request))

    assert torch.equal(drawn(prompt=start + "cat"), drawn(prompt=start + "dog"))
    assert not torch.equal(whole(start + "cat"), whole(start + "dog"))
    assert not torch.equal(whole(neg=start + "cat"), whole(neg=start + "dog"))
    assert torch.equal(whole(start), drawn(prompt=start, negative_prompt=""))


def test_a_pipeline_shares_modules_and_owns_its_scheduler(model):
    first, second = model.pipeline(), model.pipeline()
    assert first.unet is model.unet
    assert first.vae is second.vae
    assert first.scheduler is not second.scheduler
    assert isinstance(first.scheduler, DDIMScheduler)
    assert first.safety_checker is None


@pytest.mark.parametrize(
    ("prediction_type", "sampler", "said"),
    [("flow", "ddpm", "cannot sample a flow model"), ("epsilon", "flowmatch", "samples flow models")],
)
def test_samplers_that_do_not_fit_are_refused(tiny_folder, prediction_type, sampler, said):
    from toolkit.errors import ConfigError

    config = load(tiny_folder, prediction_type=prediction_type).pipeline().scheduler.config
    with pytest.raises(ConfigError, match=said):
        make_scheduler(sampler, config)


# -- hashes --------------------------------------------------------------------------------------------------


def test_hashes_follow_weights_dtype_and_config(tiny_folder):
    model, again = load(tiny_folder), load(tiny_folder)
    before = model.vae_hash, model.text_encoder_hash
    assert before == (again.vae_hash, again.text_encoder_hash)
    assert load(tiny_folder, dtype=torch.float16).vae_hash != before[0]
    with torch.no_grad():
        model.vae.encoder.conv_in.weight[0, 0, 0, 0] += 1
    assert model.vae_hash != before[0]
    again.vae.register_to_config(scaling_factor=0.75)
    assert component_hash(load(tiny_folder).vae) == before[0]
    again.vae.encoder.conv_in.weight.data = again.vae.encoder.conv_in.weight.data.clone()
    assert again.vae_hash != before[0]


def test_the_text_hash_follows_the_tokenizer(tiny_copy):
    import json

    before = load(tiny_copy).text_encoder_hash
    path = tiny_copy / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a</w>"], vocabulary["b</w>"] = vocabulary["b</w>"], vocabulary["a</w>"]
    path.write_text(json.dumps(content))
    assert load(tiny_copy).text_encoder_hash != before


# -- saving --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow"])
def test_a_saved_folder_loads_in_plain_diffusers(tiny_folder, tmp_path, draw, prediction_type):
    model = load(tiny_folder, prediction_type=prediction_type)
    folder = tmp_path / "deep" / "saved"
    model.save_pretrained(folder, dtype=torch.float32)
    plain = StableDiffusionPipeline.from_pretrained(folder)
    plain.set_progress_bar_config(disable=True)
    assert torch.equal(draw_with(plain), draw(model))
    assert load(folder).objective.name == prediction_type


def test_saving_casts_a_copy_and_replaces_the_old_folder(tiny_folder, tmp_path):
    model = load(tiny_folder)
    before = component_hash(model.unet)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "old.txt").write_text("old")
    model.save_pretrained(tmp_path / "saved", dtype=torch.float16)
    assert component_hash(model.unet) == before
    assert not (tmp_path / "saved" / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    saved = load(tmp_path / "saved", dtype=torch.float16)
    assert all(
        torch.equal(value.half(), saved.unet.state_dict()[key])
        for key, value in model.unet.state_dict().items()
    )


def test_saved_files_are_readable_by_all_and_name_no_path(tiny_folder, tmp_path):
    load(tiny_folder).save_pretrained(tmp_path / "saved", dtype=torch.float16)
    files = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path
        assert str(tiny_folder).encode() not in path.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


def test_a_saved_file_equals_the_model(tiny_folder, tmp_path, draw):
    from safetensors import safe_open

    model = load(tiny_folder)
    path = tmp_path / "deep" / "saved.safetensors"
    model.save_single_file(path, dtype=torch.float32, metadata={"note": "kept"})
    assert torch.equal(draw(load(path, config_dir=tiny_folder)), draw(model))
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["note"] == "kept"


@pytest.mark.parametrize("kind", ["folder", "file", "autoencoder"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_place_that_cannot_be_written_is_told(model, tmp_path, kind, deep):
    (tmp_path / "in_the_way").touch()
    path = tmp_path / "in_the_way" / ("deep/saved" if deep else "saved")
    saves = {
        "folder": lambda: model.save_pretrained(path, dtype=torch.float32),
        "file": lambda: model.save_single_file(path, dtype=torch.float32),
        "autoencoder": lambda: save_autoencoder(model.vae, path, dtype=torch.float32),
    }
    with pytest.raises(RunError, match="saved: cannot be written: (Not a directory|File exists)"):
        saves[kind]()
