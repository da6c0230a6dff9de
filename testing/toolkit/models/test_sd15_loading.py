"""Stable Diffusion 1.x from folders, files and configs; what goes wrong is told in a line with a remedy."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from testing.tiny_models import build_tiny_sd15, edit_json, export_ldm_checkpoint, strip_weights
from toolkit.errors import ModelError
from toolkit.models.sd15.loading import load
from toolkit.models.sd15.single_file import SD15_CONFIG
from toolkit.models.shared.components import component_hash
from toolkit.models.shared.single_files import load_autoencoder_file


def test_a_folder_loads_frozen_and_in_eval_mode(tiny_folder, draw):
    from diffusers import StableDiffusionPipeline

    model = load(tiny_folder)
    modules = [model.unet, model.vae, model.text_encoder]
    assert not any(module.training for module in modules)
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    reference = StableDiffusionPipeline.from_pretrained(tiny_folder)
    assert component_hash(model.unet) == component_hash(reference.unet)
    assert torch.equal(draw(model), draw(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_that_of_every_component(tiny_folder, dtype):
    model = load(tiny_folder, dtype=dtype)
    for module in (model.unet, model.vae, model.text_encoder):
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    assert model.dtype == dtype


def test_a_folder_with_fp16_variant_files_loads(tiny_copy, draw, tiny_folder):
    for file in [*tiny_copy.rglob("*.safetensors")]:
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert torch.equal(draw(load(tiny_copy)), draw(load(tiny_folder)))


# -- single files --------------------------------------------------------------------------------------------


def test_a_single_file_equals_its_folder(tiny_folder, tmp_path, draw):
    model = load(tiny_folder)
    path = export_ldm_checkpoint(model.pipeline(), tmp_path / "model.safetensors")
    single = load(path, config_dir=tiny_folder)
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(single, name).state_dict(), getattr(model, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(draw(single), draw(model))


def test_a_ckpt_file_equals_its_folder(tiny_folder, tmp_path, draw):
    model = load(tiny_folder)
    weights = load_file(export_ldm_checkpoint(model.pipeline(), tmp_path / "model.safetensors"))
    torch.save({"state_dict": weights}, tmp_path / "model.ckpt")
    assert torch.equal(draw(load(tmp_path / "model.ckpt", config_dir=tiny_folder)), draw(model))


def test_a_tokenizer_beside_the_file_is_used(tiny_folder, tiny_copy, tmp_path):
    shutil.rmtree(tiny_copy / "tokenizer")
    path = export_ldm_checkpoint(load(tiny_folder).pipeline(), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="openai/clip-vit-large-patch14.*not in the local cache"):
        load(path, config_dir=tiny_copy)
    shutil.copytree(tiny_folder / "tokenizer", tmp_path / "tokenizer")
    assert load(path, config_dir=tiny_copy).count_tokens("cat") == 3


def test_a_file_without_text_encoder_takes_one_by_name(tiny_folder, tmp_path, draw):
    model = load(tiny_folder)
    path = export_ldm_checkpoint(model.pipeline(), tmp_path / "model.safetensors")
    weights = {key: value for key, value in load_file(path).items() if not key.startswith("cond_stage_model")}
    save_file(weights, path)
    with pytest.raises(ModelError, match="CLIPTextModel.*model.te_name_or_path"):
        load(path, config_dir=tiny_folder)
    assert torch.equal(
        draw(load(path, config_dir=tiny_folder, te_name_or_path=str(tiny_folder))), draw(model)
    )


def _only(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("conditioner.embedders.1.model.x", "holds Stable Diffusion XL.*model.arch: sdxl"),
        ("cond_stage_model.model.x", "holds Stable Diffusion 2.x.*model.arch: sd2"),
        ("lora_unet_x.lora_down.weight", "holds a LoRA"),
        ("something.weight", "holds no Stable Diffusion 1.x model"),
    ],
)
def test_files_of_another_kind_say_what_they_are(tmp_path, key, said):
    path = _only({key: torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=said):
        load(path)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match=r"broken\.safetensors.*not a readable"):
        load(path)


@pytest.mark.parametrize(
    "missing",
    [
        "model.diffusion_model.out.2.weight",
        "first_stage_model.decoder.conv_out.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ],
)
def test_a_file_with_missing_weights_is_refused(tiny_folder, tmp_path, missing):
    path = export_ldm_checkpoint(load(tiny_folder).pipeline(), tmp_path / "model.safetensors")
    weights = load_file(path)
    del weights[missing]
    save_file(weights, path)
    with pytest.raises(ModelError, match="lacks"):
        load(path, config_dir=tiny_folder)


def test_a_file_of_another_shape_is_refused(tiny_folder, tmp_path):
    path = export_ldm_checkpoint(load(tiny_folder).pipeline(), tmp_path / "model.safetensors")
    shutil.copytree(tiny_folder / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(ModelError, match=r"model\.safetensors.*cannot be loaded as Stable Diffusion 1\.x"):
        load(path)


def test_the_bundled_configs_describe_stable_diffusion_15():
    """Parameter counts as published: UNet 859.5 M, autoencoder 83.7 M, text encoder 123.1 M."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SD15_CONFIG / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(SD15_CONFIG / "vae"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(SD15_CONFIG / "text_encoder"))
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in (unet, vae, text)]
    assert counts == [859_520_964, 83_653_863, 123_060_480]


# -- another autoencoder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [False, True])
def test_another_autoencoder_replaces_the_own(tiny_folder, tmp_path, inner):
    other = build_tiny_sd15(tmp_path / "other", seed=1)
    model = load(tiny_folder, vae_path=str(other / "vae" if inner else other))
    assert model.vae_hash == load(other).vae_hash
    assert model.vae_hash != load(tiny_folder).vae_hash


def test_a_missing_autoencoder_names_its_key(tiny_folder, tmp_path):
    with pytest.raises(ModelError, match="model.vae_path: .*no such file or folder"):
        load(tiny_folder, vae_path=str(tmp_path / "none"))


def test_an_autoencoder_file_of_another_shape_is_refused(tiny_folder):
    with pytest.raises(ModelError, match="model.vae_path: .*cannot be loaded as an autoencoder"):
        load_autoencoder_file(
            tiny_folder / "vae" / "diffusion_pytorch_model.safetensors", SD15_CONFIG, dtype=torch.float32
        )


def test_another_text_encoder_replaces_that_of_a_folder(tiny_folder, tmp_path):
    other = build_tiny_sd15(tmp_path / "other", seed=1)
    model = load(tiny_folder, te_name_or_path=str(other))
    assert component_hash(model.text_encoder) == component_hash(load(other).text_encoder)
    assert component_hash(model.text_encoder) != component_hash(load(tiny_folder).text_encoder)


# -- from configs --------------------------------------------------------------------------------------------


def test_random_weights_depend_on_the_seed_alone(tiny_copy):
    strip_weights(tiny_copy)
    state = torch.random.get_rng_state()
    first, again, other = (load(tiny_copy, from_config=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name in ("unet", "vae", "text_encoder"):
        assert component_hash(getattr(first, name)) == component_hash(getattr(again, name))
        assert component_hash(getattr(first, name)) != component_hash(getattr(other, name))


def test_components_with_weights_are_loaded_and_the_others_built(tiny_copy, tiny_folder):
    strip_weights(tiny_copy, ("unet", "text_encoder"))
    mixed, loaded = load(tiny_copy, from_config=True, seed=3), load(tiny_folder)
    assert mixed.vae_hash == loaded.vae_hash
    assert component_hash(mixed.unet) != component_hash(loaded.unet)
    strip_weights(tiny_copy)
    # The weights of one component do not depend on which others were built.
    assert component_hash(load(tiny_copy, from_config=True, seed=3).unet) == component_hash(mixed.unet)


def test_random_weights_in_another_dtype_are_the_same_ones(tiny_copy):
    strip_weights(tiny_copy)
    exact = load(tiny_copy, from_config=True, seed=1).unet.state_dict()
    rounded = load(tiny_copy, from_config=True, seed=1, dtype=torch.bfloat16).unet.state_dict()
    assert all(torch.equal(value.bfloat16(), rounded[key]) for key, value in exact.items())


def test_from_config_needs_a_folder(tiny_folder, tmp_path):
    path = export_ldm_checkpoint(load(tiny_folder).pipeline(), tmp_path / "model.safetensors")
    for name in (path, "some/model"):
        with pytest.raises(ModelError, match="model.from_config.*needs a local folder"):
            load(name, from_config=True)


# -- noise schedules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_objective_is_what_the_scheduler_config_says(tmp_path, prediction_type):
    folder = build_tiny_sd15(tmp_path / "model", prediction_type=prediction_type)
    assert load(folder).objective.name == prediction_type
    assert load(folder, prediction_type="v_prediction").objective.name == "v_prediction"
    assert load(folder, prediction_type="flow").objective.name == "flow"


def test_a_schedule_that_cannot_be_trained_is_refused(tiny_copy):
    config = tiny_copy / "scheduler" / "scheduler_config.json"
    edit_json(config, prediction_type="sample")
    with pytest.raises(ModelError, match="model.prediction_type: .*'sample' is none of"):
        load(tiny_copy)
    edit_json(config, prediction_type="epsilon", rescale_betas_zero_snr=True)
    with pytest.raises(ModelError, match="zero terminal SNR"):
        load(tiny_copy)
    assert load(tiny_copy, prediction_type="v_prediction").objective.snr(torch.ones(1)) == 0


# -- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody/no-such-model", "'nobody/no-such-model': is not in the local cache.*unset HF_HUB_OFFLINE"),
        ("no_such_folder", "no such file or folder, and not a hub id"),
        ("models/absent.safetensors", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
    ],
)
def test_a_name_that_leads_nowhere_gives_one_line(name, said):
    with pytest.raises(ModelError, match=said) as caught:
        load(name)
    assert len(str(caught.value).splitlines()) == 1


def test_hub_errors_say_what_to_do():
    from huggingface_hub import errors

    from toolkit.models.shared.hub import explain_hub_error

    # Whichever HTTP client the hub library is built on.
    client = import_module(errors.Response.__module__.partition(".")[0])
    response = client.Response(403, request=client.Request("GET", "https://huggingface.co/a/b"))
    cases = [
        (errors.GatedRepoError("gated", response=response), "is gated.*https://huggingface.co/a/b.*HF_TOKEN"),
        (
            errors.RepositoryNotFoundError("404", response=response),
            "no such model on the hub, or it is private",
        ),
        (errors.EntryNotFoundError("model_index.json"), "not a diffusers model"),
        (errors.HfHubHTTPError("server is down", response=response), "the hub refused: server is down"),
        (
            client.ConnectTimeout("too slow"),
            r"the hub cannot be reached \(ConnectTimeout\).*check the network",
        ),
        (OSError("disk full\nmore"), "cannot be downloaded: disk full$"),
    ]
    for error, said in cases:
        with pytest.raises(ModelError, match=said):
            explain_hub_error("a/b", error, key="model.name_or_path")


def test_a_folder_without_weights_names_from_config(tiny_copy):
    strip_weights(tiny_copy, ("unet",))
    with pytest.raises(ModelError, match=r"no weights in .*unet.*model\.from_config: true"):
        load(tiny_copy)


@pytest.mark.parametrize("part", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_an_incomplete_folder_names_what_is_missing(tiny_copy, part):
    (tiny_copy / part).unlink()
    with pytest.raises(ModelError, match=part):
        load(tiny_copy)


def test_a_folder_without_tokenizer_says_so(tiny_copy):
    shutil.rmtree(tiny_copy / "tokenizer")
    with pytest.raises(ModelError, match="tokenizer is missing"):
        load(tiny_copy)


def test_a_folder_of_another_architecture_names_it(tiny_copy):
    edit_json(tiny_copy / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(ModelError, match="StableDiffusionXLPipeline, not Stable Diffusion 1.x.*arch: sdxl"):
        load(tiny_copy)


def test_missing_and_damaged_weights_are_refused(tiny_copy):
    path = tiny_copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    first = sorted(weights)[0]
    kept = {key: value for key, value in weights.items() if key != first}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks 1 weights of its config, first {first}"):
        load(tiny_copy)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="unet cannot be loaded"):
        load(tiny_copy)


def test_a_broken_config_is_named(tiny_copy):
    (tiny_copy / "vae" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"vae/config\.json cannot be read"):
        load(tiny_copy)


def test_nothing_is_printed_while_loading(tiny_folder, capfd):
    load(tiny_folder, dtype=torch.float16)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_json_files_of_the_bundled_config_name_their_classes():
    index = json.loads((SD15_CONFIG / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert all((SD15_CONFIG / part / "config.json").is_file() for part in ("unet", "vae", "text_encoder"))
