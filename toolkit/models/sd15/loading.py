"""Stable Diffusion 1.x from a diffusers folder, a hub id, or a single file in the original key layout."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch

from toolkit.models.sd15.model import SD15
from toolkit.models.sd15.single_file import SD15_CONFIG, load_single_file
from toolkit.models.shared.families import Family, load_components
from toolkit.models.shared.schedules import with_schedule

FAMILY = Family(
    title="Stable Diffusion 1.x",
    pipeline="StableDiffusionPipeline",
    modules={
        "unet": "diffusers:UNet2DConditionModel",
        "vae": "diffusers:AutoencoderKL",
        "text_encoder": "transformers:CLIPTextModel",
    },
    tokenizers={"tokenizer": "transformers:CLIPTokenizer"},
    vae_config=SD15_CONFIG,
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
) -> SD15:
    """A frozen model in eval mode. Raises ModelError with what to do.

    path: a diffusers folder, a hub id, or a .safetensors / .ckpt file; for a file config_dir may hold other
    configs (and a tokenizer) than those of SD 1.5. te_name_or_path: text encoder and tokenizer from elsewhere.
    from_config: components whose folder holds no weights are built at random from `seed`; those with weights
    are loaded. prediction_type: epsilon, v_prediction or flow, None for what the scheduler's config says.
    zero_terminal_snr: rescale the noise table so that its last level is pure noise (arXiv:2305.08891).
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
        SD15,
        components,
        os.fspath(path),
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
    )
    return model.freeze().to(device)
