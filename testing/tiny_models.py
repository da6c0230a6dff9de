"""Real model classes at toy size, written to disk in under a second, for tests."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from toolkit.seeding import keyed_seed

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        FluxPipeline,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
    )
    from transformers import CLIPTextModel, CLIPTokenizer

WORDS = [
    "a",
    "photo",
    "of",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "cat",
    "dog",
    "on",
    "white",
    "in",
    "style",
]
MAX_LENGTH = 16
T5_LENGTH = 512
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def build_tiny_sd15(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write a loadable diffusers folder of a Stable Diffusion 1.x with random weights; returns the folder.

    0.3 M parameters, 16 tokens, an f4 autoencoder: 32 x 32 pixels are 8 x 8 latents.
    """
    pipeline = tiny_pipeline(prediction_type=prediction_type, seed=seed)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_pipeline(*, prediction_type: str = "epsilon", seed: int = 0) -> StableDiffusionPipeline:
    """A Stable Diffusion 1.x pipeline of toy size in float32 and eval mode; equal seeds, equal weights."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed("tiny", seed))
        tokenizer = tiny_tokenizer()
        vae = _tiny_autoencoder()
        unet = UNet2DConditionModel(
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=24,
            sample_size=8,
        )
        text_encoder = tiny_clip(tokenizer)
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=_tiny_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _tiny_autoencoder(**options: float) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
        scaling_factor=0.5,
        **options,
    )


def _tiny_scheduler(prediction_type: str) -> DDIMScheduler:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def build_tiny_sdxl(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write a loadable diffusers folder of a Stable Diffusion XL with random weights; returns the folder.

    Two text encoders of other widths, two layers a block as in SDXL; else as build_tiny_sd15.
    """
    tiny_xl_pipeline(prediction_type=prediction_type, seed=seed).save_pretrained(folder)
    return folder


def build_tiny_ssd(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """The same with the UNet of Segmind's models: no attention in its middle, other depths on its way up."""
    pipeline = tiny_xl_pipeline(prediction_type=prediction_type, seed=seed, segmind=True)
    pipeline.save_pretrained(folder)
    return folder


def tiny_xl_pipeline(
    *, prediction_type: str = "epsilon", seed: int = 0, segmind: bool = False
) -> StableDiffusionXLPipeline:
    """A Stable Diffusion XL pipeline of toy size in float32 and eval mode; equal seeds, equal weights."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizers = {"tokenizer": tiny_tokenizer(), "tokenizer_2": tiny_tokenizer(pad_token="!")}
    vocabulary = tokenizers["tokenizer"].get_vocab()
    text = {
        "vocab_size": len(vocabulary), "num_attention_heads": 2, "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": vocabulary[BOS], "eos_token_id": vocabulary[EOS],
    }  # fmt: skip
    smaller = {"mid_block_type": "UNetMidBlock2D", "reverse_transformer_layers_per_block": ((2, 1, 1), 1)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed("tiny_xl", seed))
        vae = _tiny_autoencoder(force_upcast=True)
        unet = UNet2DConditionModel(
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2),
            norm_num_groups=4,
            attention_head_dim=(2, 4),
            cross_attention_dim=24 + 32,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 20,
            sample_size=8,
            **(smaller if segmind else {}),
        )
        first = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=24, intermediate_size=48, num_hidden_layers=2, projection_dim=24,
                pad_token_id=vocabulary[EOS], **text,
            )
        )  # fmt: skip
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=3, projection_dim=20,
                hidden_act="gelu", pad_token_id=vocabulary["!"], **text,
            )
        )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae=vae.eval(),
        unet=unet.eval(),
        text_encoder=first.eval(),
        text_encoder_2=second.eval(),
        scheduler=_tiny_scheduler(prediction_type),
        add_watermarker=False,
        **tokenizers,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_tiny_flux(folder: Path, *, schnell: bool = False, seed: int = 0) -> Path:
    """Write a loadable diffusers folder of a FLUX.1 with random weights; returns the folder.

    0.2 M parameters, 16 tokens of CLIP and 512 of T5 (one a byte), an f4 autoencoder of 4 channels: 32 x 32
    pixels are 4 x 4 tokens. schnell: without guidance embedding and without shift.
    """
    tiny_flux_pipeline(schnell=schnell, seed=seed).save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_flux_pipeline(*, schnell: bool = False, seed: int = 0) -> FluxPipeline:
    """A FLUX.1 pipeline of toy size in float32 and eval mode; equal seeds, equal weights."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed("tiny", seed))
        tokenizer = tiny_tokenizer()
        vae = _tiny_autoencoder(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False)
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=24,
            guidance_embeds=not schnell,
            axes_dims_rope=(4, 6, 6),
        )
        text_encoder = tiny_clip(tokenizer)
        text_encoder_2 = T5EncoderModel(
            T5Config(
                vocab_size=384,
                d_model=32,
                d_kv=8,
                d_ff=64,
                num_layers=1,
                num_heads=4,
                feed_forward_proj="gated-gelu",
            )
        )
    shift = {"shift": 1.0} if schnell else {"shift": 3.0, "use_dynamic_shifting": True}
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**shift),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2.eval(),
        tokenizer_2=ByT5Tokenizer(model_max_length=T5_LENGTH),
        transformer=transformer.eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text encoder at toy size for a tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    vocabulary = tokenizer.get_vocab()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=24,
            bos_token_id=vocabulary[BOS],
            eos_token_id=vocabulary[EOS],
            pad_token_id=vocabulary[EOS],
        )
    )


def tiny_tokenizer(**options: str) -> CLIPTokenizer:
    """CLIP's kind of tokenizer over letters, digits and a few whole words; other words are spelled out."""
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
                pieces.append("".join(pair))
            parts[:2] = ["".join(pair)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, BOS, EOS]))}
    return CLIPTokenizer(vocabulary, merges, model_max_length=MAX_LENGTH, **options)


def strip_weights(folder: Path, components: tuple[str, ...] = ("unet", "vae", "text_encoder")) -> None:
    """Leave only the configs of some components of a diffusers folder."""
    for component in components:
        for file in (folder / component).iterdir():
            if file.suffix == ".safetensors":
                file.unlink()


def export_ldm_checkpoint(pipeline: StableDiffusionPipeline, path: Path) -> Path:
    """Write a pipeline as one file in the original key layout; returns the path."""
    from toolkit.models.sd15.single_file import ldm_state_dict

    weights = ldm_state_dict(pipeline.unet, pipeline.vae, pipeline.text_encoder)
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return path


def edit_json(path: Path, **changes: object) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Every architecture that can be loaded, at toy size: name -> what writes its folder.
TINY_BUILDERS = {
    "sd15": build_tiny_sd15,
    "sdxl": build_tiny_sdxl,
    "ssd": build_tiny_ssd,
    "vega": build_tiny_ssd,
    "flux": build_tiny_flux,
    "flex1": build_tiny_flux,
}
