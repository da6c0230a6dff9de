"""`StableDiffusion` passes everything on; loading for inference; LoRA files on top."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from testing.tiny_models import build_tiny_sd15
from toolkit.errors import ModelError
from toolkit.model_utils import AppliedLora, apply_lora, load_model_for_inference
from toolkit.stable_diffusion_model import StableDiffusion

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
NUM_TARGETS = 32  # four in each of the two attentions of the four transformer blocks


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build_tiny_sd15(tmp_path_factory.mktemp("face") / "sd15", prediction_type="v_prediction")


@pytest.fixture
def sd(folder: Path) -> StableDiffusion:
    return load_model_for_inference(folder)


def predict(sd: StableDiffusion) -> torch.Tensor:
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return sd.predict_noise(noisy, torch.tensor([0.5]), sd.encode_prompt("a cat"))


def test_every_call_is_the_architectures(sd):
    model = sd.architecture
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    latents = sd.encode_images(pixels)
    assert torch.equal(latents, model.encode_images(pixels))
    assert torch.equal(sd.decode_latents(latents), model.decode_latents(latents))
    one, listed = sd.encode_prompt("a cat"), sd.encode_prompt(["a cat", "a dog"])
    assert torch.equal(one.embeds, model.encode_prompts(["a cat"]).embeds)
    assert (len(one), len(listed)) == (1, 2)
    noise, t = torch.ones_like(latents), torch.tensor([0.25])
    assert torch.equal(sd.add_noise(latents, noise, t), model.objective.add_noise(latents, noise, t))
    assert torch.equal(sd.get_loss_target(latents, noise, t), model.objective.target(latents, noise, t))
    assert torch.equal(sd.predict_noise(latents, t, one), model.predict(latents, t, one))
    assert (sd.unet, sd.vae, sd.text_encoder) == (model.unet, model.vae, model.text_encoder)
    assert (sd.tokenizer, sd.objective, sd.latent_spec) == (
        model.tokenizer,
        model.objective,
        model.latent_spec,
    )
    assert (sd.device, sd.dtype) == (torch.device("cpu"), torch.float32)
    assert sd.pipeline().unet is sd.unet
    assert sd.to("cpu") is sd


def test_a_model_for_inference_is_frozen(folder):
    sd = load_model_for_inference(folder, arch="sd1", dtype=torch.bfloat16)
    assert sd.dtype == torch.bfloat16
    assert not sd.unet.training
    assert not any(parameter.requires_grad for parameter in sd.unet.parameters())


def test_an_architecture_that_cannot_be_loaded_yet_is_named(folder):
    with pytest.raises(ModelError, match="cogview4 .* is not supported yet"):
        load_model_for_inference(folder, arch="cogview4")


def save_lora(folder: Path, path: Path) -> Path:
    """A LoRA file in diffusers' keys, made by peft and diffusers, with weights as if trained."""
    pipeline = StableDiffusion.load(folder).pipeline()
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in pipeline.unet.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    pipeline.save_lora_weights(
        path.parent,
        unet_lora_layers=get_peft_model_state_dict(pipeline.unet),
        weight_name=path.name,
    )
    return path


def test_a_lora_changes_every_module_it_names_and_scales_with_its_multiplier(folder, tmp_path):
    path = save_lora(folder, tmp_path / "style.safetensors")
    base = predict(load_model_for_inference(folder))
    outputs = {}
    for multiplier in (0.0, 0.5, 1.0):
        sd = load_model_for_inference(folder)
        assert apply_lora(sd, path, multiplier) == NUM_TARGETS
        outputs[multiplier] = predict(sd)
    torch.testing.assert_close(outputs[0.0], base)
    assert (outputs[1.0] - base).abs().max() > 1e-3
    assert (outputs[0.5] - outputs[1.0]).abs().max() > 1e-4


def test_two_loras_add_up(folder, tmp_path):
    path = save_lora(folder, tmp_path / "style.safetensors")
    twice, once = load_model_for_inference(folder), load_model_for_inference(folder)
    apply_lora(twice, path, 0.5)
    apply_lora(twice, path, 0.25)
    apply_lora(once, path, 0.75)
    torch.testing.assert_close(predict(twice), predict(once), rtol=1e-4, atol=1e-5)


def test_several_loras_are_switched_off_together_and_come_back_as_they_were(folder, tmp_path):
    path = save_lora(folder, tmp_path / "style.safetensors")
    sd = load_model_for_inference(folder)
    base = predict(sd)
    apply_lora(sd, path, 0.5)
    apply_lora(sd, path, 0.25)
    network, applied = AppliedLora(sd), predict(sd)
    with pytest.raises(KeyError), network.enabled(False):
        torch.testing.assert_close(predict(sd), base)
        raise KeyError
    torch.testing.assert_close(predict(sd), applied)
    assert (applied - base).abs().max() > 1e-3


def test_a_lora_that_fits_in_part_is_refused(folder, tmp_path, sd):
    path = save_lora(folder, tmp_path / "style.safetensors")
    weights = load_file(path)
    strangers = {key.replace("mid_block", "far_block"): value for key, value in weights.items()}
    save_file(strangers, path)
    before = predict(sd)
    with pytest.raises(ModelError, match=rf"style\.safetensors.*of its {NUM_TARGETS} modules"):
        apply_lora(sd, path)
    torch.testing.assert_close(predict(sd), before)


def _of_another_model(weights):
    return {key.replace("transformer_blocks", "other_blocks"): value for key, value in weights.items()}


def _of_another_width(weights):
    wide = {key: value for key, value in weights.items() if "lora_A" in key or "lora.down" in key}
    return weights | {key: torch.zeros(len(value), 999) for key, value in wide.items()}


@pytest.mark.parametrize(("change", "told"), [
    (_of_another_model, rf"none of its {NUM_TARGETS} modules has a place in this model \(was it trained"),
    (_of_another_width, rf"{NUM_TARGETS} of its weights have another shape here.*: \[\d+, 999\] instead of"),
])  # fmt: skip
def test_a_lora_of_another_model_is_refused_in_one_short_line(folder, tmp_path, sd, capfd, change, told):
    path = save_lora(folder, tmp_path / "style.safetensors")
    save_file(change(load_file(path)), path)
    before = predict(sd)
    with pytest.raises(ModelError, match=told) as caught:
        apply_lora(sd, path)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    # diffusers would tell the same at length, with the names of all modules.
    assert capfd.readouterr().err == ""
    torch.testing.assert_close(predict(sd), before)


@pytest.mark.parametrize("content", [{"x": torch.zeros(1)}, None])
def test_what_is_no_lora_is_refused(sd, tmp_path, content):
    path = tmp_path / "other.safetensors"
    if content is None:
        path.write_bytes(b"no")
    else:
        save_file(content, path)
    with pytest.raises(ModelError, match=r"other\.safetensors: (holds no LoRA|is not a readable)"):
        apply_lora(sd, path)
