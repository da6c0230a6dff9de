"""Stable Diffusion 1.x: a UNet over the latents of an autoencoder, told what to draw by CLIP's text encoder.

Legend: B batch, C latent channels, H W image rows and columns, h w latent rows and columns, L tokens,
D embedding width.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toolkit.models import base
from toolkit.models.sd15.single_file import ldm_state_dict
from toolkit.models.shared import clip_prompts, saving, schedules
from toolkit.models.shared.components import component_hash
from toolkit.models.shared.families import Components
from toolkit.models.shared.latents import decode_latents, encode_images, onto
from toolkit.prompt_utils import Conditioning

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from toolkit.config_modules.sample import SampleRequest
    from toolkit.data.items import Batch


class SD15:
    """A loaded Stable Diffusion 1.x model: the Architecture that trainer, evaluator and sampler use."""

    max_windows = clip_prompts.MAX_WINDOWS

    def __init__(self, components: Components) -> None:
        """Take the components as they are. Raises ValueError for a noise schedule that cannot be trained."""
        self.modules = components.modules
        self.unet = components.modules["unet"]
        self.vae = components.modules["vae"]
        self.text_encoder = components.modules["text_encoder"]
        self.tokenizer = components.tokenizers["tokenizer"]
        self.tokenizers = components.tokenizers
        self.objective = schedules.make_objective(components.scheduler_config)
        self.scheduler_config = schedules.sampling_config(self.objective, components.scheduler_config)
        self.denoisers: dict[str, nn.Module] = {"unet": self.unet}
        self.text_encoders: dict[str, nn.Module] = {"text_encoder": self.text_encoder}
        self.latent_spec = schedules.latent_spec(self.vae, self.unet)
        self.max_length = clip_prompts.window_length(self.tokenizer, self.text_encoder)
        self.num_windows = 1

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return base.first_weight(self.denoisers).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the UNet's own weights, adapters aside."""
        return base.first_weight(self.denoisers).dtype

    def to(self, device: torch.device | str) -> SD15:
        """Move every component; returns self."""
        base.move(self.modules, device)
        return self

    def freeze(self) -> SD15:
        """Put every component in eval mode without gradients; returns self. Training turns it on again."""
        base.freeze(self.modules)
        return self

    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) float32, shifted and scaled."""
        return encode_images(self.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """latents (B, C, h, w) -> pixels (B, 3, H, W) float32, about [-1, 1]."""
        return decode_latents(self.vae, latents)

    # -- prompts -----------------------------------------------------------------------------------------

    def encode_prompts(self, prompts: list[str], images: list[Tensor] | None = None) -> Conditioning:
        """B prompts -> embeds (B, L, D) of the encoder's last layer; L is max_length, more with windows.

        Gradients flow if the encoder is trained. Raises ValueError on images: this model reads none; raises
        ModelError for a prompt that fits no number of windows.
        """
        if images is not None:
            raise ValueError("Stable Diffusion 1.x reads no images with its prompts")
        windows = clip_prompts.token_windows(
            self.tokenizer, prompts, length=self.max_length, num_windows=self.num_windows
        )
        device = next(self.text_encoder.parameters()).device
        # Padding is attended to on purpose: SD 1.x was trained that way, and its pipeline does the same.
        states = self.text_encoder(windows.flatten(0, 1).to(device))[0]
        return Conditioning(clip_prompts.join_windows(states, windows.shape[1]))

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt with its begin and end marks."""
        return clip_prompts.count_tokens(self.tokenizer, prompt)

    def windows_needed(self, prompt: str) -> int:
        """How many windows of tokens hold a prompt."""
        return clip_prompts.windows_needed(self.count_tokens(prompt), self.max_length)

    def condition_items(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        """The conditioning as it is: this model is told the prompt alone."""
        return conditioning

    # -- denoising ---------------------------------------------------------------------------------------

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """noisy (B, C, h, w), t (B,) in [0, 1] -> prediction (B, C, h, w) float32, as the objective defines.

        The only place where latents leave float32.
        """
        unet = self.denoisers["unet"]
        weight = next(unet.parameters())
        prediction = unet(
            onto(noisy, weight),
            self.objective.timesteps(t.to(weight.device, non_blocking=weight.device.type != "cpu")),
            encoder_hidden_states=onto(conditioning.embeds, weight),
        ).sample
        return prediction.float()

    def pipeline(self) -> StableDiffusionPipeline:
        """diffusers' own pipeline over these very modules, with a scheduler of its own."""
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            **self.modules,
            **self.tokenizers,
            scheduler=schedules.pipeline_scheduler(self.objective, self.scheduler_config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def sampling_arguments(self, request: SampleRequest) -> dict[str, Any]:
        """What the pipeline is called with for a request, beside its generator."""
        return clip_prompts.pipeline_texts(self, request) | {
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.sample_steps,
            "guidance_scale": request.guidance_scale,
            "guidance_rescale": request.guidance_rescale,
        }

    # -- identity and files ------------------------------------------------------------------------------

    @property
    def vae_hash(self) -> str:
        """What cached latents depend on: the autoencoder's weights, their dtype, and its config."""
        return component_hash(self.vae)

    @property
    def text_encoder_hash(self) -> str:
        """What cached embeddings depend on: the encoder's weights and config, the tokenizer, the windows."""
        parts = [(self.text_encoder, self.tokenizer)]
        return clip_prompts.prompt_hash(parts, self.max_length, self.num_windows)

    def save_pretrained(self, folder: Path, *, dtype: torch.dtype) -> None:
        """Write a diffusers folder, all or nothing; diffusers' StableDiffusionPipeline loads it as it is."""
        saving.save_folder(self, folder, dtype=dtype)

    def save_single_file(
        self, path: Path, *, dtype: torch.dtype, metadata: dict[str, str] | None = None
    ) -> None:
        """Write one .safetensors file in the original key layout (no tokenizer in it), all or nothing."""
        weights = ldm_state_dict(self.unet, self.vae, self.text_encoder)
        saving.save_weights(weights, path, dtype=dtype, metadata=metadata)
