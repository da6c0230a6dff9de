"""Models of the published sizes with random weights, made on the device and written to disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from testing.tiny_models import BOS, EOS, TINY_BUILDERS, edit_json
from toolkit.paths import ASSETS_ROOT

CLIP_LENGTH = 77
T5_XXL = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
          "feed_forward_proj": "gated-gelu"}  # fmt: skip
CLIP_L = ASSETS_ROOT / "sd15_config" / "text_encoder" / "config.json"


def build_full_size(arch: str, folder: Path, *, device: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A diffusers folder of sd15, sdxl or flux in its own size, except tokenizers; returns the folder."""
    TINY_BUILDERS[arch](folder)
    configs = ASSETS_ROOT / f"{arch}_config"
    for tokenizer in folder.glob("tokenizer*"):
        if not (arch == "flux" and tokenizer.name == "tokenizer_2"):
            edit_json(tokenizer / "tokenizer_config.json", model_max_length=CLIP_LENGTH)
    for name, make in _makers(arch).items():
        path = configs / name / "config.json"
        config = json.loads(path.read_text()) if path.exists() else {}
        with torch.device(device):
            module = make(config).to(dtype)
        for file in (folder / name).glob("*.safetensors"):
            file.unlink()
        module.save_pretrained(folder / name)
        del module
    return folder


def _makers(arch: str) -> dict[str, Callable[[dict[str, Any]], nn.Module]]:
    """What makes a part from its published config, by the part's name."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    makers: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
        "vae": AutoencoderKL.from_config,
        "text_encoder": lambda config: _clip(CLIPTextModel, config or json.loads(CLIP_L.read_text())),
    }
    if arch == "flux":
        t5 = T5Config(**T5_XXL)  # type: ignore[arg-type]
        return makers | {
            "transformer": FluxTransformer2DModel.from_config,
            "text_encoder_2": lambda _: T5EncoderModel(t5),
        }
    if arch == "sdxl":
        makers["text_encoder_2"] = lambda config: _clip(CLIPTextModelWithProjection, config)
    return makers | {"unet": UNet2DConditionModel.from_config}


def _clip(cls: Any, config: dict[str, Any]) -> nn.Module:
    """A text encoder of CLIP's whose marks are those of the toy tokenizer."""
    from transformers import CLIPTextConfig

    from testing.tiny_models import tiny_tokenizer

    vocabulary = tiny_tokenizer().get_vocab()
    marks = {"bos_token_id": vocabulary[BOS], "eos_token_id": vocabulary[EOS]}
    made: nn.Module = cls(CLIPTextConfig(**config | marks))
    return made
