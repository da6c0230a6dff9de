"""Loading Stable Diffusion XL: single files in the original keys, the bundled configs, what goes wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from testing.tiny_models import build_tiny_sd15, build_tiny_sdxl, build_tiny_ssd, edit_json, strip_weights
from toolkit.errors import ModelError
from toolkit.models.sdxl.loading import FAMILY, load
from toolkit.models.sdxl.single_file import SDXL_CONFIG, SMALLER_CONFIGS, _config_of, sgm_state_dict
from toolkit.models.shared.components import component_hash
from toolkit.models.shared.families import find_class


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    load(folder).save_single_file(folder.parent / "model.safetensors", dtype=torch.float32)
    return folder.parent / "model.safetensors"


def hashes(model) -> dict[str, str]:
    return {name: component_hash(module) for name, module in model.modules.items()}


def without(file: Path, mark: str, path: Path) -> Path:
    save_file({key: value for key, value in load_file(file).items() if mark not in key}, path)
    return path


# -- single files --------------------------------------------------------------------------------------------


def test_the_keys_are_literally_those_other_programs_match(file):
    keys = load_file(file)
    first, second = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
    assert {
        "model.diffusion_model.label_emb.0.0.weight",
        "model.diffusion_model.time_embed.0.weight",
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.output_blocks.2.2.conv.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.quant_conv.weight",
        f"{first}encoder.layers.0.self_attn.q_proj.weight",
        f"{first}embeddings.token_embedding.weight",
        f"{second}transformer.resblocks.2.attn.in_proj_weight",
        f"{second}transformer.resblocks.0.attn.in_proj_bias",
        f"{second}transformer.resblocks.0.attn.out_proj.weight",
        f"{second}transformer.resblocks.0.mlp.c_fc.weight",
        f"{second}transformer.resblocks.0.mlp.c_proj.bias",
        f"{second}transformer.resblocks.0.ln_1.weight",
        f"{second}token_embedding.weight",
        f"{second}positional_embedding",
        f"{second}ln_final.bias",
        f"{second}text_projection",
        f"{second}logit_scale",
    } <= keys.keys()
    kinds = {re.match(r"[a-z_]+(\.embedders\.\d)?", key)[0] for key in keys}
    assert kinds == {"model", "first_stage_model", "conditioner.embedders.0", "conditioner.embedders.1"}
    assert not any("q_proj" in key or "v_proj" in key for key in keys if key.startswith(second))
    assert keys[f"{second}text_projection"].shape == (32, 20)


def test_stable_diffusion_xl_has_as_many_tensors_as_its_first_file():
    """sd_xl_base_1.0.safetensors has 2,515, one of which (position_ids) transformers no longer keeps."""
    modules = {}
    with torch.device("meta"):
        for name, class_name in FAMILY.modules.items():
            cls = find_class(class_name)
            config = json.loads((SDXL_CONFIG / name / "config.json").read_text())
            has_class = getattr(cls, "config_class", None) is not None
            modules[name] = cls(cls.config_class.from_dict(config)) if has_class else cls.from_config(config)
    assert len(sgm_state_dict(modules)) == 2515 - 1


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_a_file_equals_its_folder(folder, file, tmp_path, kind):
    path = file
    if kind == "ckpt":
        path = tmp_path / "model.ckpt"
        torch.save({"state_dict": load_file(file)}, path)
    model = load(path, config_dir=folder)
    assert hashes(model) == hashes(load(folder))
    assert model.text_encoder_hash == load(folder).text_encoder_hash


@pytest.mark.parametrize(
    ("prediction_type", "options", "marks"),
    [
        ("epsilon", {}, set()),
        ("v_prediction", {}, {"v_pred"}),
        ("v_prediction", {"zero_terminal_snr": True}, {"v_pred", "ztsnr"}),
    ],
)
def test_a_file_says_what_it_predicts(folder, tmp_path, prediction_type, options, marks):
    path = tmp_path / "saved.safetensors"
    load(folder, prediction_type=prediction_type, **options).save_single_file(path, dtype=torch.float32)
    assert {"v_pred", "ztsnr"} & load_file(path).keys() == marks
    again = load(path, config_dir=folder)
    assert again.objective.name == prediction_type
    assert (float(again.objective.snr(torch.ones(1))) == 0) == ("ztsnr" in marks)
    # What the job file says wins.
    assert load(path, config_dir=folder, prediction_type="v_prediction").objective.name == "v_prediction"


def test_tokenizers_beside_the_file_are_used(folder, file, tmp_path):
    config = Path(shutil.copytree(folder, tmp_path / "config"))
    for name in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(config / name)
    path = Path(shutil.copy(file, tmp_path / "model.safetensors"))
    with pytest.raises(ModelError, match="openai/clip-vit-large-patch14.*not in the local cache"):
        load(path, config_dir=config)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(folder / name, tmp_path / name)
    assert load(path, config_dir=config).text_encoder_hash == load(folder).text_encoder_hash


def test_a_tokenizer_from_the_hub_pads_the_second_encoder_with_zeros(folder, file, tmp_path, monkeypatch):
    """CLIP's tokenizer, of which the hub has one, pads with its end mark; OpenCLIP pads with id 0, "!"."""
    from toolkit.models.shared import single_files

    monkeypatch.setattr(single_files, "download_folder", lambda *_, **__: folder / "tokenizer")
    config = Path(shutil.copytree(folder, tmp_path / "config", ignore=shutil.ignore_patterns("tokenizer*")))
    model = load(Path(shutil.copy(file, tmp_path)), config_dir=config)
    assert model.tokenizers["tokenizer"].pad_token == "<|endoftext|>"
    assert model.tokenizers["tokenizer_2"].pad_token == "!"
    ours, theirs = model.encode_prompts(["a cat"]), load(folder).encode_prompts(["a cat"])
    torch.testing.assert_close(ours.embeds, theirs.embeds)


def test_a_file_without_text_encoders_takes_both_by_name(folder, file, tmp_path):
    path = without(file, "conditioner.", tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="CLIPTextModel.*model.te_name_or_path"):
        load(path, config_dir=folder)
    model = load(path, config_dir=folder, te_name_or_path=str(folder))
    assert hashes(model) == hashes(load(folder))
    with pytest.raises(ModelError, match="must be a folder with text_encoder, text_encoder_2"):
        load(path, config_dir=folder, te_name_or_path=str(folder / "text_encoder"))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("cond_stage_model.transformer.x", "holds Stable Diffusion 1.x.*model.arch: sd15"),
        ("cond_stage_model.model.x", "holds Stable Diffusion 2.x.*model.arch: sd2"),
        ("conditioner.embedders.0.model.x", "holds the refiner.*name the base model"),
        ("lora_unet_x.lora_down.weight", "holds a LoRA"),
        ("something.weight", "holds no Stable Diffusion XL model"),
    ],
)
def test_files_of_another_kind_say_what_they_are(tmp_path, key, said):
    save_file({key: torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=said):
        load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "missing",
    ["diffusion_model.out.2.weight", "decoder.conv_out.weight", "embedders.1.model.text_projection"],
)
def test_a_file_with_missing_weights_is_refused(folder, file, tmp_path, missing):
    with pytest.raises(ModelError, match="lacks"):
        load(without(file, missing, tmp_path / "model.safetensors"), config_dir=folder)


# -- the bundled configs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "count"),
    # As published: SDXL 2,567 M; SSD-1B 1.3 B; Vega 745 M.
    [("sdxl_config", 2_567_463_684), ("ssd_config", 1_331_334_404), ("vega_config", 745_225_604)],
)
def test_the_bundled_configs_describe_the_published_models(config, count):
    from diffusers import UNet2DConditionModel

    config_dir = SDXL_CONFIG.with_name(config)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(config_dir / "unet"))
    assert sum(parameter.numel() for parameter in unet.parameters()) == count
    # The keys of such a file lead to this very config.
    from toolkit.models.shared.original_keys import original_unet

    assert _config_of({f"model.diffusion_model.{key}" for key in original_unet(unet)}) == config_dir


def test_segminds_models_differ_in_their_unet_alone():
    def files(config: Path) -> dict[str, str]:
        found = {path.relative_to(config).as_posix(): path.read_text() for path in config.rglob("*.json")}
        return {name: text for name, text in found.items() if name != "unet/config.json"}

    assert [files(config) for config in SMALLER_CONFIGS.values()] == [files(SDXL_CONFIG)] * 2


def test_the_text_encoders_of_the_bundled_config_are_those_of_sdxl():
    """CLIP-L as in Stable Diffusion 1.x (123.1 M) and OpenCLIP bigG's text tower with projection (694.7 M)."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        first = CLIPTextModel(CLIPTextConfig.from_pretrained(SDXL_CONFIG / "text_encoder"))
        second = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(SDXL_CONFIG / "text_encoder_2"))
    counts = [sum(p.numel() for p in encoder.parameters()) for encoder in (first, second)]
    assert counts == [123_060_480, 694_659_840]


# -- folders -------------------------------------------------------------------------------------------------


def test_a_folder_of_segminds_loads_as_sdxl(tmp_path):
    model = load(build_tiny_ssd(tmp_path / "ssd"))
    assert not model.unet.mid_block.attentions and type(model).__name__ == "SDXL"


def test_a_folder_of_another_architecture_names_it(tmp_path):
    with pytest.raises(ModelError, match="StableDiffusionPipeline, not Stable Diffusion XL.*arch: sd15"):
        load(build_tiny_sd15(tmp_path / "sd15"))


def test_components_without_weights_are_built_from_the_seed(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    strip_weights(copy, ("unet", "text_encoder_2"))
    with pytest.raises(ModelError, match=r"no weights in .*unet.*model\.from_config: true"):
        load(copy)
    first, again, other = (hashes(load(copy, from_config=True, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {"unet", "text_encoder_2"}


def test_a_schedule_that_cannot_be_trained_is_refused(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    edit_json(copy / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    with pytest.raises(ModelError, match="zero terminal SNR"):
        load(copy)
    assert load(copy, prediction_type="v_prediction").objective.snr(torch.ones(1)) == 0


def test_nothing_is_printed_while_loading_and_encoding(folder, file, capfd):
    for path in (folder, file):
        model = load(path, dtype=torch.float16, config_dir=folder)
        model.encode_images(torch.zeros(1, 3, 32, 32))
        model.encode_prompts(["cat " * 20])
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
