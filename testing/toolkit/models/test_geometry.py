from testing.tiny_models import build_tiny_sd15
from toolkit.models.catalogue import ARCHITECTURES
from toolkit.models.geometry import size_multiple, vae_size_multiple
from toolkit.paths import ASSETS_ROOT

SD15 = ARCHITECTURES["sd15"]


def test_multiples_are_read_from_the_configs(tmp_path):
    assert size_multiple(ASSETS_ROOT / "sd15_config", SD15) == 64
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
