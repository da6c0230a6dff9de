"""FLUX.1 from folders, hub ids and transformer files; what goes wrong is told in a line with a remedy."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from testing.tiny_models import build_tiny_flux, build_tiny_sd15, edit_json, strip_weights
from toolkit.errors import ModelError
from toolkit.models.flux.loading import load
from toolkit.models.flux.model import Flux
from toolkit.models.flux.original_keys import original_transformer
from toolkit.models.flux.single_file import FLUX_CONFIG, load_transformer_file
from toolkit.models.shared.components import component_hash
from toolkit.models.shared.original_keys import original_vae

T = torch.tensor([0.3])
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_flux(tmp_path_factory.mktemp("models") / "flux")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_flux(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "transformer.safetensors"
    load(folder).save_single_file(path, dtype=torch.float32, metadata={"note": "kept"})
    return path


def hashes(model: Flux) -> dict[str, str]:
    return {name: component_hash(model.modules[name]) for name in PARTS}


def edited(path: Path, change) -> Path:
    result = path.with_name("edited.safetensors")
    save_file({key: value.contiguous() for key, value in change(load_file(path)).items()}, result)
    return result


# -- folders -------------------------------------------------------------------------------------------------


def test_a_folder_loads_frozen_in_eval_mode_and_quietly(folder, capfd):
    from diffusers import FluxPipeline

    capfd.readouterr()
    model = load(folder, dtype=torch.bfloat16)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    modules = model.modules.values()
    assert not any(module.training for module in modules)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    assert not any(parameter.requires_grad for parameter in parameters)
    assert model.dtype == torch.bfloat16
    reference = FluxPipeline.from_pretrained(folder)
    exact = load(folder)
    assert all(component_hash(getattr(reference, part)) == hashes(exact)[part] for part in PARTS)


def test_random_weights_depend_on_the_seed_alone(copied):
    strip_weights(copied, PARTS)
    first, again, third = (load(copied, from_config=True, seed=seed) for seed in (1, 1, 2))
    assert hashes(first) == hashes(again)
    assert not set(hashes(first).values()) & set(hashes(third).values())


def test_parts_from_elsewhere_replace_those_of_a_folder(folder, other):
    mine, theirs = hashes(load(folder)), hashes(load(other))
    assert hashes(load(folder, vae_path=str(other))) == mine | {"vae": theirs["vae"]}
    text = {name: theirs[name] for name in ("text_encoder", "text_encoder_2")}
    assert hashes(load(folder, te_name_or_path=str(other))) == mine | text
    rest = load(folder, extras_name_or_path=str(other))
    assert hashes(rest) == theirs | {"transformer": mine["transformer"]}
    mixed = load(folder, extras_name_or_path=str(other), vae_path=str(folder), te_name_or_path=str(folder))
    assert hashes(mixed) == mine


def test_a_folder_of_the_transformer_alone_takes_the_rest_from_extras(folder, copied):
    for part in [*PARTS[1:], "tokenizer", "tokenizer_2", "scheduler"]:
        shutil.rmtree(copied / part)
    alone = copied / "transformer"
    for path in (copied, alone):
        assert hashes(load(path, extras_name_or_path=str(folder))) == hashes(load(folder))
    with pytest.raises(ModelError, match="is not a diffusers folder"):
        load(alone)
    with pytest.raises(ModelError, match="model.from_config.*cannot be combined with model.extras"):
        load(alone, extras_name_or_path=str(folder), from_config=True)
    (alone / "config.json").unlink()
    with pytest.raises(ModelError, match="holds no transformer"):
        load(alone, extras_name_or_path=str(folder))


def test_an_autoencoder_of_another_kind_is_refused(folder, tmp_path):
    build_tiny_sd15(tmp_path / "sd")
    edit_json(tmp_path / "sd" / "vae" / "config.json", latent_channels=4)
    path = tmp_path / "sd" / "vae"
    assert load(folder, vae_path=str(path)).latent_spec.channels == 4
    from diffusers import AutoencoderKL

    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=8).save_pretrained(path)
    with pytest.raises(ModelError, match="the autoencoder makes 8 channels, the transformer takes 4"):
        load(folder, vae_path=str(path))


def test_a_model_of_another_architecture_says_which(tmp_path):
    folder = build_tiny_sd15(tmp_path / "sd")
    with pytest.raises(ModelError, match="holds a StableDiffusionPipeline, not FLUX.1 .*model.arch: sd15"):
        load(folder)


def test_what_flux_does_not_predict_is_refused(folder):
    assert load(folder, prediction_type="flow").objective.name == "flow"
    with pytest.raises(ModelError, match="model.prediction_type: .*predicts flow, not epsilon"):
        load(folder, prediction_type="epsilon")


# -- transformer files ---------------------------------------------------------------------------------------


def test_a_file_equals_the_model_it_was_saved_from(folder, file):
    from safetensors import safe_open

    assert hashes(load(file, config_dir=folder, extras_name_or_path=str(folder))) == hashes(load(folder))
    with safe_open(file, framework="pt") as opened:
        keys, metadata = set(opened.keys()), opened.metadata()
    assert metadata["note"] == "kept"
    assert {"img_in.weight", "double_blocks.1.txt_attn.qkv.bias", "single_blocks.1.linear1.weight"} <= keys


def test_a_file_says_what_it_is(file):
    from toolkit.models.geometry import infer_architecture

    assert infer_architecture(str(file)) == "flux"
    whole = edited(file, lambda weights: {f"model.diffusion_model.{k}": v for k, v in weights.items()})
    assert infer_architecture(str(whole)) == "flux"


def test_the_parts_of_a_file_come_from_where_they_are_named(folder, other, file, tmp_path):
    vae = tmp_path / "ae.safetensors"
    weights = original_vae(load(other).vae)
    save_file({key: value.contiguous() for key, value in weights.items()}, vae)
    text = load(file, config_dir=folder, vae_path=str(vae), te_name_or_path=str(other))
    assert hashes(text) == hashes(load(other)) | {"transformer": hashes(load(folder))["transformer"]}
    assert text.scheduler_config["use_dynamic_shifting"] is True


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "an autoencoder with model.vae_path and text encoders with model.te_name_or_path"),
        (("vae_path",), "or text encoders with model.te_name_or_path"),
        (("te_name_or_path",), "or an autoencoder with model.vae_path"),
    ],
)
def test_a_file_without_the_rest_says_what_to_name(folder, file, given, said):
    named = dict.fromkeys(given, str(folder))
    with pytest.raises(ModelError, match=f"holds the transformer alone .*model.extras_name_or_path, .*{said}"):
        load(file, config_dir=folder, **named)


@pytest.mark.parametrize("layout", ["comfy", "diffusers", "fp8"])
def test_other_layouts_of_a_file(folder, file, layout):
    changes = {
        "comfy": lambda weights: {f"model.diffusion_model.{key}": value for key, value in weights.items()}
        | {"text_encoders.clip_l.x": torch.zeros(1)},
        "diffusers": lambda weights: load(folder).transformer.state_dict(),
        "fp8": lambda weights: {key: value.to(torch.float8_e4m3fn) for key, value in weights.items()},
    }
    model = load(edited(file, changes[layout]), config_dir=folder, extras_name_or_path=str(folder))
    if layout == "fp8":
        ours, exact = model.transformer.state_dict(), load(folder).transformer.state_dict()
        assert all(torch.equal(ours[key], value.to(torch.float8_e4m3fn).float()) for key, value in exact.items())
    else:
        assert hashes(model) == hashes(load(folder))


def test_blocks_and_guidance_are_counted_in_the_file(file, folder):
    def shorten(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        left_out = ("double_blocks.1.", "guidance_in.")
        return {key: value for key, value in weights.items() if not key.startswith(left_out)}

    transformer = load_transformer_file(edited(file, shorten), dtype=torch.float32, config_dir=folder)
    config = transformer.config
    assert (config.num_layers, config.num_single_layers, config.guidance_embeds) == (1, 2, False)
    model = load(file.with_name("edited.safetensors"), config_dir=folder, vae_path=str(folder),
                 te_name_or_path=str(folder))  # fmt: skip
    assert (model.scheduler_config["use_dynamic_shifting"], model.scheduler_config["shift"]) == (False, 1.0)


def with_key(key: str):
    return lambda weights: weights | {key: torch.zeros(1)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: {"x": torch.zeros(1)}, "holds no FLUX.1 transformer"),
        (with_key("model.diffusion_model.input_blocks.0.0.weight"), "Stable Diffusion with a UNet"),
        (with_key("model.diffusion_model.joint_blocks.0.x"), "holds Stable Diffusion 3.*model.arch: sd3"),
        (with_key("transformer.x.lora_A.weight"), "holds a LoRA"),
        (with_key("img_in.scale_weight"), r"is quantized \(img_in.scale_weight\)"),
        (lambda weights: {k: v for k, v in weights.items() if "img_mlp.2" not in k}, "lacks 4 weights"),
        (
            lambda weights: weights | {"img_in.weight": torch.zeros(32, 96)},
            r"img_in.weight is \(32, 96\) where \(32, 16\) is needed",
        ),
    ],
)
def test_files_of_another_kind_say_what_they_are(folder, file, change, said):
    with pytest.raises(ModelError, match=said):
        load(edited(file, change), config_dir=folder, extras_name_or_path=str(folder))


def test_a_damaged_file_and_a_pickle_are_refused(folder, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "model.ckpt").touch()
    for name, said in (("broken.safetensors", "not a readable"), ("model.ckpt", "is no .safetensors file")):
        with pytest.raises(ModelError, match=said):
            load(tmp_path / name, extras_name_or_path=str(folder))


def test_extras_that_are_a_file_or_nowhere_name_their_key(folder, file, tmp_path):
    with pytest.raises(ModelError, match="model.extras_name_or_path: .*is a file"):
        load(file, config_dir=folder, extras_name_or_path=str(file))
    with pytest.raises(ModelError, match="model.extras_name_or_path: .*no such file or folder"):
        load(file, config_dir=folder, extras_name_or_path=str(tmp_path / "none"))


def test_the_bundled_configs_describe_flux1_dev():
    """As published: a transformer of 11.9 B weights, an autoencoder of 83.8 M with 16 channels."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(
            FluxTransformer2DModel.load_config(FLUX_CONFIG / "transformer")
        )
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(FLUX_CONFIG / "vae"))
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in (transformer, vae)]
    assert counts == [11_901_408_320, 83_819_683]
    assert vae.config.latent_channels == 16


@pytest.mark.slow
def test_our_keys_are_those_that_diffusers_reads(tmp_path):
    """At FLUX.1's own width, the only one that diffusers' reader knows, with one block of each kind."""
    config = FluxTransformer2DModel.load_config(FLUX_CONFIG / "transformer")
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(config | {"num_layers": 1, "num_single_layers": 1})
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.empty(value.shape, dtype=torch.bfloat16).uniform_(generator=generator)
        for name, value in transformer.state_dict().items()
    }
    transformer.load_state_dict(weights, assign=True)
    (tmp_path / "config" / "transformer").mkdir(parents=True)
    transformer.save_config(tmp_path / "config" / "transformer")
    save_file(original_transformer(transformer), tmp_path / "flux.safetensors")
    theirs = FluxTransformer2DModel.from_single_file(
        str(tmp_path / "flux.safetensors"), config=str(tmp_path / "config"), subfolder="transformer",
        torch_dtype=torch.bfloat16, local_files_only=True,
    )  # fmt: skip
    assert same(theirs, weights)
    del theirs
    assert same(load_transformer_file(tmp_path / "flux.safetensors", dtype=torch.bfloat16), weights)


def same(module: nn.Module, weights: dict[str, Tensor]) -> bool:
    state = module.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in weights)


# -- the hub -------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """hub(answer): from now on model_index.json is answered so; returns what else was asked for."""
    import diffusers
    import huggingface_hub

    downloads: list[str] = []

    def answer_with(answer: Path | Exception) -> list[str]:
        def index(repo_id: str, name: str, **options: object) -> str:
            if isinstance(answer, Exception):
                raise answer
            return str(answer / name)

        def download(repo_id: str, **options: object) -> str:
            downloads.append(f"{repo_id} without {', '.join(options)}")
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", index)
        monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
        return downloads

    return answer_with


def test_a_gated_model_is_told_of_before_any_weights_are_fetched(hub):
    from huggingface_hub import errors

    client = import_module(errors.Response.__module__.partition(".")[0])
    address = "https://huggingface.co/black-forest-labs/FLUX.1-dev"
    response = client.Response(403, request=client.Request("GET", address))
    downloads = hub(errors.GatedRepoError("gated", response=response))
    with pytest.raises(ModelError, match=f"is gated.*accept them at {address} and set HF_TOKEN"):
        load("black-forest-labs/FLUX.1-dev")
    assert downloads == []


def test_a_hub_model_of_another_architecture_is_refused_before_any_weights_are_fetched(hub, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    downloads = hub(tmp_path)
    with pytest.raises(ModelError, match="holds a StableDiffusion3Pipeline, not FLUX.1 .*model.arch: sd3"):
        load("some/model")
    assert downloads == []


def test_extras_of_the_hub_are_fetched_without_the_transformer(hub, folder, file):
    downloads = hub(folder)
    loaded = load(file, config_dir=folder, extras_name_or_path="some/flux", vae_path=str(folder))
    assert hashes(loaded) == hashes(load(folder))
    assert downloads == ["some/flux without safety_checker, feature_extractor, transformer, vae"]
    assert hashes(load("some/flux")) == hashes(load(folder))
