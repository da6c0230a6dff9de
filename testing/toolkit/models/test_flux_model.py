"""What a loaded FLUX.1 does: values against diffusers' pipeline and recipe, guidance, saving, hashes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from torch import Tensor

from testing.tiny_models import T5_LENGTH, build_tiny_flux
from toolkit.config_modules.sample import SampleRequest
from toolkit.diffusion.timestep_sampling import resolution_shift
from toolkit.errors import ConfigError, ModelError
from toolkit.models.base import Architecture
from toolkit.models.flux.loading import load
from toolkit.models.flux.model import Flux
from toolkit.models.flux.packing import image_ids, pack, text_ids, unpack
from toolkit.models.shared.samplers import make_scheduler
from toolkit.prompt_utils import Conditioning

PROMPTS = ["a red circle", ""]
T = torch.tensor([0.3, 0.9])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_flux(tmp_path_factory.mktemp("models") / "flux")


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_flux(tmp_path_factory.mktemp("models") / "schnell", schnell=True)


@pytest.fixture(scope="module")
def model(folder: Path) -> Flux:
    return load(folder)


@pytest.fixture(scope="module")
def noisy() -> Tensor:
    return torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(1))


def as_the_pipeline_does(model: Flux, noisy: Tensor, t: Tensor, guidance: float | None) -> Tensor:
    """The transformer called as FluxPipeline calls it, for one noise level an item."""
    pipeline = model.pipeline()
    batch, channels, rows, columns = noisy.shape
    embeds, pooled, text = pipeline.encode_prompt(PROMPTS[:batch], max_sequence_length=model.max_length)
    tokens = model.transformer(
        hidden_states=pipeline._pack_latents(noisy, batch, channels, rows, columns),
        timestep=1000 * t / 1000,
        guidance=None if guidance is None else torch.full([batch], guidance),
        pooled_projections=pooled,
        encoder_hidden_states=embeds,
        txt_ids=text,
        img_ids=pipeline._prepare_latent_image_ids(batch, rows // 2, columns // 2, "cpu", torch.float32),
        return_dict=False,
    )[0]
    downscale = model.latent_spec.downscale
    return pipeline._unpack_latents(tokens, rows * downscale, columns * downscale, downscale)


# -- geometry ------------------------------------------------------------------------------------------------


def test_it_is_an_architecture(model):
    assert isinstance(model, Architecture)
    assert model.latent_spec.shape(32, 48) == (4, 8, 12)
    assert model.latent_spec.num_tokens(32, 48) == 24
    assert (model.latent_spec.downscale, model.latent_spec.size_multiple) == (4, 8)


def test_packing_and_places_are_those_of_the_pipeline(model, noisy):
    pipeline = model.pipeline()
    packed = pack(noisy)
    assert torch.equal(packed, pipeline._pack_latents(noisy, 2, 4, 8, 12))
    assert torch.equal(unpack(packed, 8, 12), noisy)
    assert torch.equal(unpack(packed, 8, 12), pipeline._unpack_latents(packed, 32, 48, 4))
    places = pipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32)
    assert torch.equal(image_ids(8, 12, torch.device("cpu")), places)
    assert torch.equal(text_ids(5, torch.device("cpu")), torch.zeros(5, 3))


def test_latents_are_shifted_and_scaled_as_the_pipeline_takes_them_back(model):
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = model.encode_images(pixels)
    mean = model.vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(latents, (mean - 0.1) * 0.5)
    # As FluxPipeline ends.
    expected = model.vae.decode(latents / 0.5 + 0.1, return_dict=False)[0]
    torch.testing.assert_close(model.decode_latents(latents), expected)


def test_the_target_is_that_of_the_recipe(model, noisy):
    """As diffusers' dreambooth recipe for Flux: noise - model_input, mixed by its scheduler at sigma."""
    latents, noise = noisy, torch.randn(noisy.shape, generator=torch.Generator().manual_seed(2))
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[[2, 7]]
    mixed = model.objective.add_noise(latents, noise, t / 1000)
    torch.testing.assert_close(mixed, scheduler.scale_noise(latents, t, noise))
    assert torch.equal(model.objective.target(latents, noise, t / 1000), noise - latents)


def test_the_shift_of_training_is_that_of_sampling():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for tokens in (256, 1024, 4096):
        mu = calculate_shift(tokens)
        assert resolution_shift(tokens) == pytest.approx(torch.tensor(mu).exp().item(), rel=1e-6)


# -- prompts -------------------------------------------------------------------------------------------------


def test_embeddings_are_those_of_the_pipeline(model):
    conditioning = model.encode_prompts(PROMPTS)
    embeds, pooled, _ = model.pipeline().encode_prompt(PROMPTS, max_sequence_length=model.max_length)
    assert conditioning.embeds.shape == (2, T5_LENGTH, 32)
    assert torch.equal(conditioning.embeds, embeds)
    assert torch.equal(conditioning.pooled, pooled)
    alone = model.encode_prompts(PROMPTS[:1])
    torch.testing.assert_close(conditioning[0].embeds, alone.embeds)


def test_a_prompt_that_t5_would_cut_is_refused(model):
    fits = "x" * (T5_LENGTH - 1)  # a token for each byte, and the end mark
    assert (model.count_tokens(fits), model.windows_needed(fits)) == (T5_LENGTH, 1)
    model.encode_prompts([fits])
    assert model.windows_needed(fits + "x") == 2 > model.max_windows
    with pytest.raises(ModelError, match=f"has {T5_LENGTH + 1} tokens, at most {T5_LENGTH} can be read"):
        model.encode_prompts(["a cat", fits + "x"])
    with pytest.raises(ModelError, match="can be read"):
        model.sampling_arguments(request(prompt=fits + "x"))


def test_a_prompt_beyond_clips_window_is_told_of_once_and_read_as_the_pipeline_does(folder, caplog):
    model = load(folder)
    long = "a cat on a dog on a cat on a dog on a cat on a"
    with caplog.at_level(logging.WARNING, logger="toolkit"):
        conditioning = model.encode_prompts([long])
        model.encode_prompts([long])
    assert [record.getMessage() for record in caplog.records] == [
        "some prompts are longer than CLIP's 16 tokens: T5 reads them whole, CLIP's summary their "
        "beginning, as FLUX.1 was trained"
    ]
    _, pooled, _ = model.pipeline().encode_prompt(long, max_sequence_length=model.max_length)
    assert torch.equal(conditioning.pooled, pooled)


@pytest.mark.parametrize(("guided", "length"), [(True, 512), (False, 256)])
def test_t5_reads_as_many_tokens_as_each_kind_was_trained_with(folder, schnell, guided, length):
    model = load(folder if guided else schnell)
    model.tokenizer_2.model_max_length = 10_000
    from toolkit.models.shared.families import Components

    again = Flux(Components(model.modules, model.tokenizers, model.scheduler_config))
    assert again.max_length == length


def test_gradients_flow_into_clip_when_it_is_trained_and_t5_is_never_offered(folder):
    model = load(folder)
    assert list(model.text_encoders) == ["text_encoder"]
    model.text_encoder.requires_grad_(True)
    model.encode_prompts(["a cat"]).pooled.sum().backward()
    assert model.text_encoder.get_input_embeddings().weight.grad.abs().sum() > 0


def test_pictures_beside_a_prompt_are_refused(model):
    with pytest.raises(ValueError, match="reads no images"):
        model.encode_prompts(["a cat"], images=[torch.zeros(3, 8, 8)])


# -- denoising -----------------------------------------------------------------------------------------------


def test_predict_is_the_transformer_as_the_pipeline_calls_it(model, noisy):
    prediction = model.predict(noisy, T, model.encode_prompts(PROMPTS))
    assert prediction.shape == noisy.shape
    torch.testing.assert_close(prediction, as_the_pipeline_does(model, noisy, T, 1.0), rtol=1e-5, atol=1e-6)
    other = as_the_pipeline_does(model, noisy, T, 3.5)
    assert (prediction - other).abs().max() > 1e-4  # so the test above sees the guidance


def test_schnell_is_told_no_guidance(schnell, noisy):
    model = load(schnell)
    prediction = model.predict(noisy, T, model.encode_prompts(PROMPTS))
    torch.testing.assert_close(prediction, as_the_pipeline_does(model, noisy, T, None), rtol=1e-5, atol=1e-6)


def test_predict_casts_in_and_out(folder, model, noisy):
    rounded = load(folder, dtype=torch.bfloat16)
    prediction = rounded.predict(noisy, T, rounded.encode_prompts(PROMPTS))
    assert prediction.dtype == torch.float32
    exact = model.predict(noisy, T, model.encode_prompts(PROMPTS))
    torch.testing.assert_close(prediction, exact, rtol=0.1, atol=0.05)


def test_what_cannot_be_packed_or_lacks_a_summary_is_refused(model):
    conditioning = model.encode_prompts(["a cat"])
    with pytest.raises(ValueError, match="7 x 8 latents cannot be cut"):
        model.predict(torch.zeros(1, 4, 7, 8), T[:1], conditioning)
    with pytest.raises(ValueError, match="pooled"):
        model.predict(torch.zeros(1, 4, 8, 8), T[:1], Conditioning(conditioning.embeds))


def test_our_euler_equals_the_pipeline(folder):
    model = load(folder)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    pipeline = model.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    arguments = model.sampling_arguments(request(guidance_scale=1.0))
    packed = pipeline(**arguments, latents=pack(start), output_type="latent").images
    conditioning, latents, sigmas = model.encode_prompts(["a cat"]), start, pipeline.scheduler.sigmas
    with torch.no_grad():
        for here, there in zip(sigmas[:-1], sigmas[1:], strict=True):
            latents = latents + (there - here) * model.predict(latents, here.reshape(1), conditioning)
    torch.testing.assert_close(latents, unpack(packed, 8, 8), rtol=1e-4, atol=1e-4)


# -- guidance ------------------------------------------------------------------------------------------------


def request(**changes: object) -> SampleRequest:
    values = {
        "prompt": "a cat", "neg": "", "width": 32, "height": 32, "seed": 0, "guidance_scale": 4.0,
        "guidance_rescale": 0.0, "sample_steps": 3, "sampler": "flowmatch", "network_multiplier": 1.0,
    }  # fmt: skip
    return SampleRequest(**(values | changes))  # type: ignore[arg-type]


def without_embedding(model: Flux, noisy: Tensor) -> Tensor:
    """The transformer's answer where guidance adds nothing: its last layer zeroed, bias too."""
    embedder = model.transformer.time_text_embed.guidance_embedder.linear_2
    before = {name: value.clone() for name, value in embedder.state_dict().items()}
    with torch.no_grad():
        embedder.weight.zero_()
        embedder.bias.zero_()
    answer = as_the_pipeline_does(model, noisy, T, 1.0)
    embedder.load_state_dict(before)
    return answer


def test_bypassed_guidance_is_left_out_of_training_alone(folder, model, noisy):
    bypassing = load(folder, bypass_guidance_embedding=True)
    prediction = bypassing.predict(noisy, T, bypassing.encode_prompts(PROMPTS))
    torch.testing.assert_close(prediction, without_embedding(model, noisy), rtol=1e-5, atol=1e-6)
    plain = model.predict(noisy, T, model.encode_prompts(PROMPTS))
    assert (prediction - plain).abs().max() > 1e-4
    assert torch.equal(draw(bypassing), draw(model))
    assert "guidance_scale" in bypassing.sampling_arguments(request())


def test_bypassing_survives_gradient_checkpointing(folder, noisy):
    gradients = []
    for checkpointing in (False, True):
        model = load(folder, bypass_guidance_embedding=True)
        model.transformer.requires_grad_(True).train()
        if checkpointing:
            model.transformer.enable_gradient_checkpointing()
        model.predict(noisy, T, model.encode_prompts(PROMPTS)).square().sum().backward()
        gradients.append(
            {n: p.grad for n, p in model.transformer.named_parameters() if p.grad is not None}
        )
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert not any("guidance_embedder" in name for name in plain)
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name], rtol=1e-4, atol=1e-5)


def test_flux_cfg_draws_in_two_passes_without_the_embedding(folder, model, noisy):
    cfg = load(folder, use_flux_cfg=True)
    arguments = cfg.sampling_arguments(request(neg="a dog"))
    assert (arguments["true_cfg_scale"], arguments["negative_prompt"]) == (4.0, "a dog")
    prediction = cfg.predict(noisy, T, cfg.encode_prompts(PROMPTS))
    torch.testing.assert_close(prediction, without_embedding(model, noisy), rtol=1e-5, atol=1e-6)
    pictures = [draw(cfg, **changes) for changes in ({}, {"neg": "a dog"}, {"guidance_scale": 2.0})]
    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])


def test_cfg_pictures_are_those_of_the_formula(folder):
    """uncond + scale (cond - uncond) at every step, by Euler, through our own predict."""
    model = load(folder, use_flux_cfg=True)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    pipeline = model.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    arguments = model.sampling_arguments(request(neg="a dog", guidance_scale=3.0))
    packed = pipeline(**arguments, latents=pack(start), output_type="latent").images
    wanted, unwanted = (model.encode_prompts([prompt]) for prompt in ("a cat", "a dog"))
    latents, sigmas = start, pipeline.scheduler.sigmas
    with torch.no_grad():
        for here, there in zip(sigmas[:-1], sigmas[1:], strict=True):
            away = model.predict(latents, here.reshape(1), unwanted)
            guided = away + 3.0 * (model.predict(latents, here.reshape(1), wanted) - away)
            latents = latents + (there - here) * guided
    torch.testing.assert_close(latents, unpack(packed, 8, 8), rtol=1e-4, atol=1e-4)


def test_bypassing_what_is_not_there_is_told(schnell, caplog):
    with caplog.at_level(logging.WARNING, logger="toolkit"):
        load(schnell, bypass_guidance_embedding=True)
    assert "no guidance embedding" in caplog.text


# -- pictures ------------------------------------------------------------------------------------------------


def draw(model: Flux, **changes: object) -> Tensor:
    pipeline = model.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return draw_with(pipeline, model.sampling_arguments(request(**changes)))


def draw_with(pipeline: FluxPipeline, arguments: dict[str, object]) -> Tensor:
    picture = pipeline(**arguments, output_type="np", generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(picture.images[0])


def test_a_pipeline_shares_modules_and_owns_its_scheduler(model):
    first, second = model.pipeline(), model.pipeline()
    assert first.transformer is model.transformer and first.text_encoder_2 is model.text_encoder_2
    assert first.scheduler is not second.scheduler
    assert isinstance(first.scheduler, FlowMatchEulerDiscreteScheduler)


@pytest.mark.parametrize("kind", ["dev", "schnell"])
def test_every_flow_sampler_draws_with_the_shift_of_the_model(folder, schnell, kind, capfd):
    model = load(folder if kind == "dev" else schnell)
    pipeline = model.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    config, sigmas, pictures = pipeline.scheduler.config, {}, {}
    for sampler in ("flowmatch", "euler", "ddim", "dpmsolver++"):
        pipeline.scheduler = make_scheduler(sampler, config)
        pictures[sampler] = draw_with(pipeline, model.sampling_arguments(request(sample_steps=4)))
        sigmas[sampler] = pipeline.scheduler.sigmas
    assert torch.equal(pictures["flowmatch"], pictures["euler"])
    assert torch.equal(pictures["flowmatch"], pictures["ddim"])
    assert not torch.equal(pictures["flowmatch"], pictures["dpmsolver++"])
    u = torch.tensor([0.75, 0.5])
    a = resolution_shift(16) if kind == "dev" else 1.0
    torch.testing.assert_close(sigmas["flowmatch"][1:3], a * u / (1 + (a - 1) * u))
    assert (sigmas["dpmsolver++"][1:3] > u).all() == (kind == "dev")
    with pytest.raises(ConfigError, match="cannot sample a flow model"):
        make_scheduler("pndm", config)
    assert capfd.readouterr().err == ""


# -- hashes and files ----------------------------------------------------------------------------------------


def test_hashes_follow_weights_and_both_encoders(folder):
    model, again = load(folder), load(folder)
    before = model.vae_hash, model.text_encoder_hash
    assert before == (again.vae_hash, again.text_encoder_hash)
    for encoder in (model.text_encoder, model.text_encoder_2):
        known = model.text_encoder_hash
        with torch.no_grad():
            next(encoder.parameters())[0, 0] += 1
        assert model.text_encoder_hash != known
    again.max_length = 8
    assert again.text_encoder_hash != before[1]


def test_a_saved_folder_loads_in_plain_diffusers(model, tmp_path):
    folder = tmp_path / "deep" / "saved"
    model.save_pretrained(folder, dtype=torch.float32)
    plain = FluxPipeline.from_pretrained(folder)
    plain.set_progress_bar_config(disable=True)
    assert torch.equal(draw_with(plain, model.sampling_arguments(request())), draw(model))
    assert torch.equal(draw(load(folder)), draw(model))


def test_saving_casts_a_copy(model, tmp_path):
    before = draw(model)
    model.save_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    assert torch.equal(draw(model), before)
    saved = load(tmp_path / "saved", dtype=torch.bfloat16)
    for name, module in model.modules.items():
        state = saved.modules[name].state_dict()
        assert all(torch.equal(value.bfloat16(), state[key]) for key, value in module.state_dict().items())
