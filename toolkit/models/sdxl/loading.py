"""Stable Diffusion XL from a diffusers folder, a hub id, or a single file in the original key layout.

Segmind's SSD-1B and Vega are SDXL with a smaller UNet, and load here too.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch

from toolkit.models.sdxl.model import SDXL
from toolkit.models.sdxl.single_file import SDXL_CONFIG, load_single_file
from toolkit.models.shared.families import Family, load_components
from toolkit.models.shared.schedules import with_schedule

FAMILY = Family(
    title="Stable Diffusion XL",
    pipeline="StableDiffusionXLPipeline",
    modules={
        "unet": "diffusers:UNet2DConditionModel",
        "vae": "diffusers:AutoencoderKL",
        "text_encoder": "transformers:CLIPTextModel",
        "text_encoder_2": "transformers:CLIPTextModelWithProjection",
    },
    tokenizers={"tokenizer": "transformers:CLIPTokenizer", "tokenizer_2": "transformers:CLIPTokenizer"},
    vae_config=SDXL_CONFIG,
)


def load(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    vae_path: str | None = None,
    from_config: bool = False,
    seed: int = 0,
    prediction_type: str | None = None,
    zero_terminal_snr: bool = False,
    config_dir: Path | None = None,
    te_name_or_path: str | None = None,
) -> SDXL:
    """A frozen model in eval mode. Raises ModelError with what to do.

    path: a diffusers folder, a hub id, or a .safetensors / .ckpt file; for a file config_dir may hold other
    configs (and tokenizers) than those of SDXL. te_name_or_path: a folder with both text encoders and their
    tokenizers. from_config: components whose folder holds no weights are built at random from `seed`; those
    with weights are loaded. prediction_type, zero_terminal_snr: see toolkit.models.shared.schedules.
    """
    components = load_components(
        path,
        FAMILY,
        dtype=dtype,
        read_file=partial(
            load_single_file, family=FAMILY, dtype=dtype, config_dir=config_dir,
            te_name_or_path=te_name_or_path,
        ),
        from_config=from_config,
        seed=seed,
        vae_path=vae_path,
        te_name_or_path=te_name_or_path,
    )  # fmt: skip
    model = with_schedule(
        SDXL,
        components,
        os.fspath(path),
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
    )
    return model.freeze().to(device)
