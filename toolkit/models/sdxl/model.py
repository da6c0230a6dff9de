"""Stable Diffusion XL: a UNet over latents, told what to draw by two text encoders, and of sizes and crops.

Legend: B batch, C latent channels, H W image rows and columns, h w latent rows and columns, L tokens,
D embedding width of both encoders together, P width of the pooled embedding.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toolkit.models import base
from toolkit.models.sdxl.single_file import sgm_state_dict
from toolkit.models.sdxl.sizes import SIZE_IDS, size_ids, sizes_of_whole
from toolkit.models.shared import clip_prompts, saving, schedules
from toolkit.models.shared.components import component_hash
from toolkit.models.shared.families import Components
from toolkit.models.shared.latents import decode_latents, encode_images, full_precision, onto
from toolkit.prompt_utils import Conditioning

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

    from toolkit.config_modules.sample import SampleRequest
    from toolkit.data.items import Batch


class SDXL:
    """A loaded Stable Diffusion XL model: the Architecture that trainer, evaluator and sampler use."""

    max_windows = clip_prompts.MAX_WINDOWS

    def __init__(self, components: Components) -> None:
        """Take the components as they are. Raises ValueError for a noise schedule that cannot be trained."""
        self.modules = components.modules
        self.tokenizers = components.tokenizers
        self.unet = components.modules["unet"]
        self.vae = components.modules["vae"]
        self.objective = schedules.make_objective(components.scheduler_config)
        self.scheduler_config = schedules.sampling_config(self.objective, components.scheduler_config)
        self.denoisers: dict[str, nn.Module] = {"unet": self.unet}
        self.text_encoders: dict[str, nn.Module] = {
            name: components.modules[name] for name in ("text_encoder", "text_encoder_2")
        }
        self.latent_spec = schedules.latent_spec(self.vae, self.unet)
        self.max_length = min(
            clip_prompts.window_length(tokenizer, encoder) for encoder, tokenizer in self._readers()
        )
        self.num_windows = 1

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return base.first_weight(self.denoisers).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the UNet's own weights, adapters aside."""
        return base.first_weight(self.denoisers).dtype

    def to(self, device: torch.device | str) -> SDXL:
        """Move every component; returns self."""
        base.move(self.modules, device)
        return self

    def freeze(self) -> SDXL:
        """Put every component in eval mode without gradients; returns self. Training turns it on again."""
        base.freeze(self.modules)
        return self

    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) float32, shifted and scaled."""
        with full_precision(self.vae):
            return encode_images(self.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """latents (B, C, h, w) -> pixels (B, 3, H, W) float32, about [-1, 1]."""
        with full_precision(self.vae):
            return decode_latents(self.vae, latents)

    # -- prompts -----------------------------------------------------------------------------------------

    def _readers(self) -> list[tuple[Any, Any]]:
        """The text encoders with their tokenizers."""
        return list(zip(self.text_encoders.values(), self.tokenizers.values(), strict=True))

    def encode_prompts(self, prompts: list[str], images: list[Tensor] | None = None) -> Conditioning:
        """B prompts -> embeds (B, L, D), both encoders' last layer but one, and pooled (B, P) of the second.

        L is max_length, more with windows; pooled is that of the first window, as kohya's trainers do.
        Gradients flow if the encoders are trained. Raises ValueError on images: this model reads none; raises
        ModelError for a prompt that fits no number of windows.
        """
        if images is not None:
            raise ValueError("Stable Diffusion XL reads no images with its prompts")
        states = []
        for (encoder, _), windows in zip(self._readers(), self._windows(prompts), strict=True):
            ids = windows.flatten(0, 1).to(next(encoder.parameters()).device)
            # Padding is attended to on purpose: SDXL was trained that way, and its pipeline does the same.
            output = encoder(ids, output_hidden_states=True)
            states.append(clip_prompts.join_windows(output.hidden_states[-2], windows.shape[1]))
        pooled = output.text_embeds.unflatten(0, (len(prompts), -1))[:, 0]
        return Conditioning(torch.cat(states, dim=-1), pooled=pooled)

    def _windows(self, prompts: list[str]) -> list[Tensor]:
        """The token ids (B, n, W) of prompts for each encoder, in equally many windows."""

        def at_least(count: int) -> list[Tensor]:
            return [
                clip_prompts.token_windows(tokenizer, prompts, length=self.max_length, num_windows=count)
                for _, tokenizer in self._readers()
            ]

        windows = at_least(self.num_windows)
        counts = {each.shape[1] for each in windows}
        return windows if len(counts) == 1 else at_least(max(counts))

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt with its begin and end marks, for the tokenizer that needs more."""
        return max(clip_prompts.count_tokens(tokenizer, prompt) for _, tokenizer in self._readers())

    def windows_needed(self, prompt: str) -> int:
        """How many windows of tokens hold a prompt."""
        return clip_prompts.windows_needed(self.count_tokens(prompt), self.max_length)

    def condition_items(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        """The conditioning with the original sizes and crops of the batch's pictures."""
        device = conditioning.embeds.device
        ids = size_ids(batch.items).to(device, non_blocking=device.type != "cpu")
        return replace(conditioning, extra=conditioning.extra | {SIZE_IDS: ids})

    # -- denoising ---------------------------------------------------------------------------------------

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """noisy (B, C, h, w), t (B,) in [0, 1] -> prediction (B, C, h, w) float32, as the objective defines.

        Without sizes in the conditioning the pictures count as whole. The only place where latents leave
        float32. Raises ValueError for a conditioning without pooled embeddings.
        """
        if conditioning.pooled is None:
            raise ValueError("Stable Diffusion XL needs the pooled embeddings of its prompts")
        unet = self.denoisers["unet"]
        weight = next(unet.parameters())
        sizes = conditioning.extra.get(SIZE_IDS)
        if sizes is None:
            rows, columns = (side * self.latent_spec.downscale for side in noisy.shape[-2:])
            sizes = sizes_of_whole(rows, columns, len(noisy))
        no_wait = weight.device.type != "cpu"
        prediction = unet(
            onto(noisy, weight),
            self.objective.timesteps(t.to(weight.device, non_blocking=no_wait)),
            encoder_hidden_states=onto(conditioning.embeds, weight),
            added_cond_kwargs={
                "text_embeds": onto(conditioning.pooled, weight),
                "time_ids": sizes.to(weight.device, non_blocking=no_wait),
            },
        ).sample
        return prediction.float()

    def pipeline(self) -> StableDiffusionXLPipeline:
        """diffusers' own pipeline over these very modules, with a scheduler of its own."""
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline(
            **self.modules,
            **self.tokenizers,
            scheduler=schedules.pipeline_scheduler(self.objective, self.scheduler_config),
            feature_extractor=None,
            image_encoder=None,
            add_watermarker=False,
        )

    def sampling_arguments(self, request: SampleRequest) -> dict[str, Any]:
        """What the pipeline is called with for a request, beside its generator.

        It gives latents, for decode_latents: decoding under autocast would overflow in half precision.
        """
        return clip_prompts.pipeline_texts(self, request) | {
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.sample_steps,
            "guidance_scale": request.guidance_scale,
            "guidance_rescale": request.guidance_rescale,
            "output_type": "latent",
        }

    # -- identity and files ------------------------------------------------------------------------------

    @property
    def vae_hash(self) -> str:
        """What cached latents depend on: the autoencoder's weights, their dtype, and its config."""
        return component_hash(self.vae)

    @property
    def text_encoder_hash(self) -> str:
        """What cached embeddings depend on: both encoders' weights and configs, tokenizers, the windows."""
        return clip_prompts.prompt_hash(self._readers(), self.max_length, self.num_windows)

    def save_pretrained(self, folder: Path, *, dtype: torch.dtype) -> None:
        """Write a diffusers folder, all or nothing; diffusers' StableDiffusionXLPipeline loads it as it is."""
        saving.save_folder(self, folder, dtype=dtype)

    def save_single_file(
        self, path: Path, *, dtype: torch.dtype, metadata: dict[str, str] | None = None
    ) -> None:
        """Write one .safetensors file in the original key layout (no tokenizer in it), all or nothing."""
        weights = sgm_state_dict(
            self.modules,
            predicts_velocity=self.objective.name == "v_prediction",
            zero_terminal_snr=bool(self.scheduler_config.get("rescale_betas_zero_snr")),
        )
        saving.save_weights(weights, path, dtype=dtype, metadata=metadata)
