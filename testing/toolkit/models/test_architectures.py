"""What every architecture of the catalogue must do, each with a toy model of its real classes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline

from testing.tiny_models import TINY_BUILDERS
from toolkit.config_modules.sample import SampleRequest
from toolkit.models.base import Architecture
from toolkit.models.catalogue import ARCHITECTURES, pipeline_architecture
from toolkit.models.geometry import read_json, size_multiple
from toolkit.models.shared.components import component_hash
from toolkit.networks.key_formats import style_of
from toolkit.networks.lora import attach_lora
from toolkit.networks.saving import save_network
from toolkit.training.previews import preview_context, render

SIZE = 32  # pixels of a side
# One architecture for each toy model; those that share one share their class too.
NAMES = {builder: name for name, builder in reversed(TINY_BUILDERS.items())}.values()


@dataclass(frozen=True)
class Case:
    """An architecture, the folder of its toy model, and that model loaded."""

    name: str
    folder: Path
    model: Architecture

    def load(self, path: Path | None = None, **options: object) -> Architecture:
        return ARCHITECTURES[self.name].load()(path or self.folder, **options)

    @property
    def holds_all(self) -> bool:
        """Whether a single file of this architecture holds the whole model."""
        return "model.extras_name_or_path" not in ARCHITECTURES[self.name].own_keys


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = TINY_BUILDERS[request.param](tmp_path_factory.mktemp("contract") / request.param)
    return Case(request.param, folder, ARCHITECTURES[request.param].load()(folder))


def pixels(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def sample(**changes: object) -> SampleRequest:
    """A request for a small picture."""
    return SampleRequest(
        **{"prompt": "a red circle", "neg": "blue", "width": SIZE, "height": SIZE, "sample_steps": 2,
           "guidance_scale": 4.0, "guidance_rescale": 0.0, "seed": 3, "sampler": "ddim",
           "network_multiplier": 1.0} | changes
    )  # fmt: skip


def drawn_by(pipeline: DiffusionPipeline, request: SampleRequest) -> bytes:
    """The picture that diffusers' pipeline draws by itself for a request."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        request.prompt, negative_prompt=request.neg, width=SIZE, height=SIZE,
        num_inference_steps=request.sample_steps, guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed),
    ).images[0].tobytes()  # fmt: skip


def drawn(model: Architecture, request: SampleRequest) -> bytes:
    with preview_context(model):
        return next(render(model, [request])).tobytes()


def prediction(model: Architecture) -> torch.Tensor:
    noisy = torch.randn(2, *model.latent_spec.shape(SIZE, SIZE), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([0.5, 1.0]), model.encode_prompts(["a cat", "a dog"]))


def test_every_architecture_that_loads_has_a_toy_model():
    supported = {name: entry.loader for name, entry in ARCHITECTURES.items() if entry.supported}
    assert set(TINY_BUILDERS) == set(supported)
    assert {supported[name] for name in NAMES} == set(supported.values())


def test_it_is_an_architecture_of_its_entry(case):
    entry, model = ARCHITECTURES[case.name], case.model
    assert isinstance(model, Architecture)
    class_name = str(read_json(case.folder / "model_index.json")["_class_name"])
    assert type(model.pipeline()) is getattr(diffusers, class_name)
    found = pipeline_architecture(class_name)
    assert found is not None and found.loader == entry.loader
    assert model.latent_spec.size_multiple == size_multiple(case.folder, entry)
    assert len(entry.embedding_keys) in (0, len(model.text_encoders))
    parts = {*model.denoisers, *model.text_encoders, "vae"}
    assert parts <= set(model.modules) and len(model.tokenizers) >= len(model.text_encoders)
    # What is beside them reads prompts too, and is never trained.
    assert all(name.startswith("text_encoder") for name in set(model.modules) - parts)


def test_a_loaded_model_is_frozen(case):
    for module in case.model.modules.values():
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_pictures_become_latents_and_latents_pictures(case):
    model = case.model
    latents = model.encode_images(pixels())
    assert latents.shape == (2, *model.latent_spec.shape(SIZE, SIZE)) and latents.dtype == torch.float32
    decoded = model.decode_latents(latents)
    assert decoded.shape == (2, 3, SIZE, SIZE) and decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, model.vae.decode(model.vae.encode(pixels()).latent_dist.mode()).sample)


def test_predictions_are_float32_whatever_the_weights_are(case):
    exact = prediction(case.model)
    assert exact.dtype == torch.float32 and torch.isfinite(exact).all()
    rounded = prediction(case.load(dtype=torch.bfloat16))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.2, atol=0.1)
    assert not torch.equal(rounded, exact)


def test_a_preview_is_what_diffusers_draws(case):
    judge = DiffusionPipeline.from_pretrained(case.folder)
    assert drawn(case.model, sample()) == drawn_by(judge, sample())
    assert drawn(case.model, sample()) != drawn(case.model, sample(prompt="a blue dog"))


def test_a_saved_folder_is_the_model(case, tmp_path):
    case.model.save_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(prediction(case.load(tmp_path / "saved")), prediction(case.model))
    assert drawn_by(DiffusionPipeline.from_pretrained(tmp_path / "saved"), sample()) == drawn(
        case.model, sample()
    )


def test_a_saved_file_is_the_model(case, tmp_path):
    case.model.save_single_file(tmp_path / "saved.safetensors", dtype=torch.float32)
    rest = {} if case.holds_all else {"extras_name_or_path": str(case.folder)}
    again = case.load(tmp_path / "saved.safetensors", config_dir=case.folder, **rest)
    for name, module in case.model.modules.items():
        assert component_hash(again.modules[name]) == component_hash(module), name
    assert torch.equal(prediction(again), prediction(case.model))
    if not case.holds_all:
        return  # diffusers reads FLUX.1's transformer at its own width alone: test_flux_loading
    # And by diffusers' own reader alone.
    judge = type(case.model.pipeline()).from_single_file(
        str(tmp_path / "saved.safetensors"), config=str(case.folder), local_files_only=True
    )
    assert drawn_by(judge, sample()) == drawn(case.model, sample())


def test_hashes_follow_the_weights(case, tmp_path):
    again = case.load()
    assert (again.vae_hash, again.text_encoder_hash) == (case.model.vae_hash, case.model.text_encoder_hash)
    seen = {again.text_encoder_hash}
    for encoder in again.text_encoders.values():
        with torch.no_grad():
            next(encoder.parameters())[0] += 1
        seen.add(again.text_encoder_hash)
    assert len(seen) == 1 + len(again.text_encoders)
    again.num_windows = 2
    assert again.text_encoder_hash not in seen
    with torch.no_grad():
        next(again.modules["vae"].parameters())[0] += 1
    assert again.vae_hash != case.model.vae_hash


def test_another_tokenizer_is_another_hash(case, tmp_path):
    """Each tokenizer counts: with another padding the same words give other states."""
    from testing.tiny_models import edit_json

    known = {case.model.text_encoder_hash}
    for name in case.model.tokenizers:
        folder = Path(shutil.copytree(case.folder, tmp_path / name))
        edit_json(folder / name / "tokenizer_config.json", pad_token="a</w>")
        known.add(case.load(folder).text_encoder_hash)
    assert len(known) == 1 + len(case.model.tokenizers)


@pytest.mark.parametrize("conv", [None, 2])
def test_diffusers_draws_with_a_lora_as_we_do(case, tmp_path, conv):
    ours, judge = case.load(), DiffusionPipeline.from_pretrained(case.folder)
    parts = {**ours.denoisers, **ours.text_encoders}
    network = attach_lora(parts, rank=4, alpha=3.0, seed=1, conv_rank=conv, conv_alpha=conv and 1.0)
    untouched = drawn(ours, sample())
    assert untouched == drawn(case.model, sample())  # nothing at first
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.named_parameters().items():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=generator)
    file = tmp_path / "lora.safetensors"
    save_network(network, file, dtype=torch.float32, metadata={}, style=style_of(case.name))
    judge.load_lora_weights(str(file))
    matched = 0
    for part in parts:
        theirs = {path: layer for path, layer in getattr(judge, part).named_modules()
                  if "default_0" in getattr(layer, "lora_A", {})}  # fmt: skip
        assert theirs.keys() == network.layers[part].keys()
        for path, layer in network.layers[part].items():
            delta = layer.get_delta_weight("default")
            assert delta.abs().max() > 1e-3
            torch.testing.assert_close(theirs[path].get_delta_weight("default_0"), delta, atol=1e-6, rtol=1e-5)
        matched += len(theirs)
    assert matched == network.num_modules > 0
    own = torch.frombuffer(bytearray(drawn(ours, sample())), dtype=torch.uint8).int()
    other = torch.frombuffer(bytearray(drawn_by(judge, sample())), dtype=torch.uint8).int()
    assert (own - other).abs().max() <= 1
    assert drawn(ours, sample()) != untouched
