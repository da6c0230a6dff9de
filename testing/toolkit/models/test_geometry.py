import pytest
import torch
from safetensors.torch import save_file

from testing.tiny_models import build_tiny_sd15, edit_json
from toolkit.models.catalogue import ARCHITECTURES
from toolkit.models.geometry import infer_architecture, size_multiple, vae_size_multiple
from toolkit.paths import ASSETS_ROOT

SD15 = ARCHITECTURES["sd15"]


def test_multiples_are_read_from_the_configs(tmp_path):
    assert size_multiple(ASSETS_ROOT / "sd15_config", SD15) == 64
    for name in ("sdxl", "ssd", "vega"):
        entry = ARCHITECTURES[name]
        assert size_multiple(ASSETS_ROOT / f"{name}_config", entry) == size_multiple(None, entry) == 32
    assert vae_size_multiple(ASSETS_ROOT / "sd15_config") == 8
    tiny = build_tiny_sd15(tmp_path / "tiny")
    from diffusers import AutoencoderKL, UNet2DConditionModel

    levels = len(AutoencoderKL.load_config(tiny / "vae")["block_out_channels"]) - 1
    halvings = len(UNet2DConditionModel.load_config(tiny / "unet")["block_out_channels"]) - 1
    assert vae_size_multiple(tiny) == vae_size_multiple(tiny / "vae") == 2**levels
    assert size_multiple(tiny, SD15) == 2 ** (levels + halvings)


def test_what_cannot_be_read_has_the_sizes_of_sd15(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert size_multiple(None, SD15) == size_multiple(file, SD15) == size_multiple(tmp_path, SD15) == 64
    (tmp_path / "config.json").write_text("{broken")
    assert vae_size_multiple(tmp_path) == 8


@pytest.mark.parametrize("name", ["sdxl", "ssd", "vega"])
def test_a_folder_says_its_architecture(name):
    assert infer_architecture(str(ASSETS_ROOT / f"{name}_config")) == "sdxl"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("conditioner.embedders.1.model.ln_final.weight", "sdxl"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "sd15"),
    ],
)
def test_a_file_says_its_architecture(tmp_path, key, expected):
    save_file({key: torch.zeros(1)}, tmp_path / "model.safetensors")
    assert infer_architecture(str(tmp_path / "model.safetensors")) == expected


def test_what_says_nothing_or_names_what_cannot_be_loaded_counts_as_sd15(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    (tmp_path / "other.ckpt").write_bytes(b"")
    (tmp_path / "model_index.json").write_text("{}")
    names = [tmp_path / "broken.safetensors", tmp_path / "other.ckpt", tmp_path, "somebody/some-model"]
    assert [infer_architecture(str(name)) for name in names] == ["sd15"] * 4
    edit_json(tmp_path / "model_index.json", _class_name="CogView4Pipeline")
    assert infer_architecture(str(tmp_path)) == "sd15"
