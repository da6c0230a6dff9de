"""FLUX.1: a transformer over 2 x 2 patches of latents, told what to draw by T5 and, in sum, by CLIP.

Legend: B batch, C latent channels, H W image rows and columns, h w latent rows and columns, L tokens,
D embedding width, P width of CLIP's pooled output.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toolkit.diffusion.objectives import FlowMatching, Objective
from toolkit.models import base
from toolkit.models.base import LatentSpec
from toolkit.models.flux.guidance import bypass_guidance, guidance_bypassed, has_guidance
from toolkit.models.flux.original_keys import original_transformer
from toolkit.models.flux.packing import PATCH, image_ids, pack, text_ids, unpack
from toolkit.models.shared import clip_prompts, saving, t5_prompts
from toolkit.models.shared.components import component_hash
from toolkit.models.shared.families import Components
from toolkit.models.shared.latents import decode_latents, encode_images, onto, vae_downscale
from toolkit.prompt_utils import Conditioning

if TYPE_CHECKING:
    from diffusers import FluxPipeline

    from toolkit.config_modules.sample import SampleRequest
    from toolkit.data.items import Batch

logger = logging.getLogger(__name__)

# Tokens of T5 that FLUX.1-dev and FLUX.1-schnell were trained with.
MAX_LENGTH, MAX_LENGTH_SCHNELL = 512, 256
# The strength of guidance while training: none, so that the network learns the data and not an excess of it.
TRAINING_GUIDANCE = 1.0


class Flux:
    """A loaded FLUX.1 model: the Architecture that trainer, evaluator and sampler use."""

    max_windows = 1

    def __init__(
        self, components: Components, *, bypass_guidance_embedding: bool = False, use_cfg: bool = False
    ) -> None:
        """Take the components as they are. Raises ValueError if they do not go together.

        bypass_guidance_embedding: `predict` leaves the guidance embedding out; pictures are drawn with it.
        use_cfg: pictures are drawn with classifier-free guidance in two passes, and without the embedding.
        """
        self.modules = components.modules
        self.transformer = components.modules["transformer"]
        self.vae = components.modules["vae"]
        self.text_encoder = components.modules["text_encoder"]
        self.text_encoder_2 = components.modules["text_encoder_2"]
        self.tokenizers = components.tokenizers
        self.tokenizer, self.tokenizer_2 = (components.tokenizers[n] for n in ("tokenizer", "tokenizer_2"))
        self.scheduler_config = components.scheduler_config
        self.objective: Objective = FlowMatching()
        self.denoisers: dict[str, nn.Module] = {"transformer": self.transformer}
        # T5 stays as it is: nobody's files hold adapters of it, and diffusers would drop them unsaid.
        self.text_encoders: dict[str, nn.Module] = {"text_encoder": self.text_encoder}
        self.latent_spec = _latent_spec(self.vae, self.transformer)
        guided = has_guidance(self.transformer)
        limit = MAX_LENGTH if guided else MAX_LENGTH_SCHNELL
        self.max_length = min(limit, self.tokenizer_2.model_max_length)
        self.num_windows = 1
        self.use_cfg = use_cfg
        self.bypasses_in_training = guided and bypass_guidance_embedding and not use_cfg
        self.feeds_guidance = guided and not use_cfg and not bypass_guidance_embedding
        if guided and use_cfg:
            bypass_guidance(self.transformer)
        if bypass_guidance_embedding and not guided:
            logger.warning("bypass_guidance_embedding has no effect: this model has no guidance embedding")
        self._told_of_clip = False

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return base.first_weight(self.denoisers).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the transformer's own weights, adapters aside."""
        return base.first_weight(self.denoisers).dtype

    def to(self, device: torch.device | str) -> Flux:
        """Move every component; returns self."""
        base.move(self.modules, device)
        return self

    def freeze(self) -> Flux:
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
        """B prompts -> embeds (B, L, D) of T5, L always max_length, and CLIP's pooled (B, P).

        CLIP sums up what fits its window, as the model was trained; longer prompts are told of. Gradients
        flow if CLIP is trained. Raises ValueError on images; raises ModelError for a prompt longer than T5 reads.
        """
        if images is not None:
            raise ValueError("FLUX.1 reads no images with its prompts")
        ids = t5_prompts.token_ids(self.tokenizer_2, prompts, length=self.max_length)
        # Padding is attended to on purpose: FLUX.1 was trained that way, and its pipeline does the same.
        embeds = self.text_encoder_2(ids.to(next(self.text_encoder_2.parameters()).device))[0]
        pooled = self.text_encoder(self._clip_ids(prompts)).pooler_output
        return Conditioning(embeds, pooled=pooled)

    def _clip_ids(self, prompts: list[str]) -> Tensor:
        """B prompts -> CLIP's token ids (B, window), the end of a longer prompt left out."""
        length = clip_prompts.window_length(self.tokenizer, self.text_encoder)
        longest = max(clip_prompts.count_tokens(self.tokenizer, prompt) for prompt in prompts)
        if longest > length and not self._told_of_clip:
            logger.warning(
                "some prompts are longer than CLIP's %d tokens: T5 reads them whole, CLIP's summary their "
                "beginning, as FLUX.1 was trained", length,
            )  # fmt: skip
            self._told_of_clip = True
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return ids.to(next(self.text_encoder.parameters()).device)  # type: ignore[no-any-return]

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt for T5, with its end mark."""
        return t5_prompts.count_tokens(self.tokenizer_2, prompt)

    def windows_needed(self, prompt: str) -> int:
        """1 if T5 reads the prompt whole, else more, which cannot be read."""
        return -(-self.count_tokens(prompt) // self.max_length)

    def condition_items(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        """The conditioning as it is: this model is told the prompt alone."""
        return conditioning

    # -- denoising ---------------------------------------------------------------------------------------

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """noisy (B, C, h, w), t (B,) in [0, 1] -> prediction (B, C, h, w) float32, noise - latents.

        The only place where latents leave float32. Raises ValueError if h or w is odd.
        """
        rows, columns = noisy.shape[-2:]
        if rows % PATCH or columns % PATCH:
            raise ValueError(f"{rows} x {columns} latents cannot be cut into squares of {PATCH}")
        if conditioning.pooled is None:
            raise ValueError("FLUX.1 needs CLIP's pooled embedding of the prompt")
        transformer = self.denoisers["transformer"]
        weight = next(transformer.parameters())
        device = weight.device
        sigma = t.to(device, torch.float32, non_blocking=device.type != "cpu")
        bypass = guidance_bypassed(transformer) if self.bypasses_in_training else nullcontext()
        with bypass:
            tokens = transformer(
                hidden_states=onto(pack(noisy), weight),
                timestep=sigma,  # a thousandth of what the objective calls timesteps
                guidance=torch.full_like(sigma, TRAINING_GUIDANCE) if self.feeds_guidance else None,
                pooled_projections=onto(conditioning.pooled, weight),
                encoder_hidden_states=onto(conditioning.embeds, weight),
                txt_ids=text_ids(conditioning.embeds.shape[1], device),
                img_ids=image_ids(rows, columns, device),
                return_dict=False,
            )[0]
        return unpack(tokens, rows, columns).float()

    def pipeline(self) -> FluxPipeline:
        """diffusers' own pipeline over these very modules, with a scheduler of its own."""
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

        scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(self.scheduler_config))
        return FluxPipeline(**self.modules, **self.tokenizers, scheduler=scheduler)

    def sampling_arguments(self, request: SampleRequest) -> dict[str, Any]:
        """What the pipeline is called with for a request, beside its generator.

        Raises ModelError for a prompt longer than T5 reads, which the pipeline would cut.
        """
        t5_prompts.refuse_if_long(self.tokenizer_2, request.prompt, self.max_length)
        guidance: dict[str, Any] = {"guidance_scale": request.guidance_scale}
        if self.use_cfg:
            t5_prompts.refuse_if_long(self.tokenizer_2, request.neg, self.max_length)
            guidance = {"true_cfg_scale": request.guidance_scale, "negative_prompt": request.neg}
        return {
            "prompt": request.prompt,
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.sample_steps,
            "max_sequence_length": self.max_length,
            **guidance,
        }

    # -- identity and files ------------------------------------------------------------------------------

    @property
    def vae_hash(self) -> str:
        """What cached latents depend on: the autoencoder's weights, their dtype, and its config."""
        return component_hash(self.vae)

    @property
    def text_encoder_hash(self) -> str:
        """What cached embeddings depend on: both encoders, their tokenizers, and how many tokens are read."""
        parts = [(self.text_encoder, self.tokenizer), (self.text_encoder_2, self.tokenizer_2)]
        return clip_prompts.prompt_hash(parts, self.max_length, self.num_windows)

    def save_pretrained(self, folder: Path, *, dtype: torch.dtype) -> None:
        """Write a diffusers folder, all or nothing; diffusers' FluxPipeline loads it as it is."""
        saving.save_folder(self, folder, dtype=dtype)

    def save_single_file(
        self, path: Path, *, dtype: torch.dtype, metadata: dict[str, str] | None = None
    ) -> None:
        """Write the transformer as one .safetensors file in the original key layout, all or nothing.

        That is what other programs load as a FLUX.1 model; autoencoder and text encoders are files of their own.
        """
        saving.save_weights(original_transformer(self.transformer), path, dtype=dtype, metadata=metadata)


def _latent_spec(vae: Any, transformer: Any) -> LatentSpec:
    """The geometry of the latents. Raises ValueError if the transformer takes other latents."""
    channels, downscale = vae.config.latent_channels, vae_downscale(vae)
    wanted = transformer.config.in_channels // PATCH**2
    if channels != wanted:
        raise ValueError(f"the autoencoder makes {channels} channels, the transformer takes {wanted}")
    return LatentSpec(channels, downscale, size_multiple=downscale * PATCH, patch=PATCH)
