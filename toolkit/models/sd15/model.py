"""Stable Diffusion 1.x: a UNet over the latents of an autoencoder, told what to draw by CLIP's text encoder.

Legend: B batch, C latent channels, H W image rows and columns, h w latent rows and columns, L tokens,
D embedding width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toolkit.diffusion.objectives import EpsilonPrediction, FlowMatching, Objective, VelocityPrediction
from toolkit.models.base import LatentSpec
from toolkit.models.shared.components import component_hash
from toolkit.prompt_utils import Conditioning

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

# What SD 1.x samples with where a scheduler config leaves it open; diffusers' own defaults are for pixels.
_SAMPLING_DEFAULTS = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
# DPM-Solver++ of order 1 is Euler's method here, and unlike diffusers' flow Euler it fits this pipeline.
_FLOW_SCHEDULER = {
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 1.0,
    "algorithm_type": "dpmsolver++",
    "solver_order": 1,
    "final_sigmas_type": "zero",
    "steps_offset": 1,
}
_OBJECTIVES: dict[str, Callable[[Tensor], Objective]] = {
    "epsilon": EpsilonPrediction,
    "v_prediction": VelocityPrediction,
}


@dataclass
class Components:
    """The parts of a Stable Diffusion 1.x model, and the config of its noise schedule in diffusers' terms."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]


def make_objective(scheduler_config: Mapping[str, Any]) -> Objective:
    """The objective of a scheduler config of diffusers. Raises ValueError if it cannot be trained."""
    from diffusers import DDPMScheduler

    prediction_type = scheduler_config.get("prediction_type", "epsilon")
    if prediction_type in ("flow", "flow_prediction"):
        return FlowMatching()
    if prediction_type not in _OBJECTIVES:
        raise ValueError(f"prediction_type {prediction_type!r} is none of epsilon, v_prediction, flow")
    table = DDPMScheduler.from_config(dict(scheduler_config)).alphas_cumprod
    if prediction_type == "epsilon" and table[-1] == 0:
        # The last level is pure noise: predicting it says nothing about the picture (arXiv:2305.08891).
        raise ValueError("zero terminal SNR (rescale_betas_zero_snr) needs prediction_type v_prediction")
    return _OBJECTIVES[prediction_type](table)


class SD15:
    """A loaded Stable Diffusion 1.x model: the Architecture that trainer, evaluator and sampler use."""

    def __init__(self, components: Components) -> None:
        """Take the components as they are. Raises ValueError for a noise schedule that cannot be trained."""
        self.unet = components.unet
        self.vae = components.vae
        self.text_encoder = components.text_encoder
        self.tokenizer = components.tokenizer
        self.objective: Objective = make_objective(components.scheduler_config)
        if isinstance(self.objective, FlowMatching):
            self.scheduler_config: dict[str, Any] = dict(_FLOW_SCHEDULER)
        else:
            self.scheduler_config = _SAMPLING_DEFAULTS | components.scheduler_config
        self.denoisers: dict[str, nn.Module] = {"unet": self.unet}
        self.text_encoders: dict[str, nn.Module] = {"text_encoder": self.text_encoder}
        self.tokenizers = {"tokenizer": self.tokenizer}
        self.latent_spec = latent_spec(self.vae, self.unet)
        positions = self.text_encoder.config.max_position_embeddings
        self.max_length = min(self.tokenizer.model_max_length, positions)

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the UNet's own weights, adapters aside."""
        return next(self.unet.parameters()).dtype

    def to(self, device: torch.device | str) -> SD15:
        """Move every component; returns self."""
        for module in (self.unet, self.vae, self.text_encoder):
            module.to(device)
        return self

    def freeze(self) -> SD15:
        """Put every component in eval mode without gradients; returns self. Training turns it on again."""
        for module in (self.unet, self.vae, self.text_encoder):
            module.requires_grad_(False).eval()
        return self

    # -- pictures ----------------------------------------------------------------------------------------

    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) float32, shifted and scaled.

        The mode of the posterior rather than a sample: its spread is tiny next to the noise of training, and
        the latents of a picture are then one fact, cached or not. Raises ValueError on another shape.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels must be (B, 3, H, W), got {tuple(pixels.shape)}")
        weight = next(self.vae.parameters())
        latents = self.vae.encode(_onto(pixels, weight)).latent_dist.mode().float()
        return (latents - self._shift) * self.vae.config.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """latents (B, C, h, w) -> pixels (B, 3, H, W) float32, about [-1, 1]."""
        weight = next(self.vae.parameters())
        unscaled = latents.float() / self.vae.config.scaling_factor + self._shift
        return self.vae.decode(_onto(unscaled, weight)).sample.float()

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0

    # -- prompts -----------------------------------------------------------------------------------------

    def encode_prompts(self, prompts: list[str], images: list[Tensor] | None = None) -> Conditioning:
        """B prompts -> embeds (B, L, D) of the encoder's last layer; L is max_length, longer prompts are cut.

        Gradients flow if the encoder is trained. Raises ValueError on images: this model reads none.
        """
        if images is not None:
            raise ValueError("Stable Diffusion 1.x reads no images with its prompts")
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.max_length,
            truncation=True,
            return_tensors="pt",
        )
        device = next(self.text_encoder.parameters()).device
        # Padding is attended to on purpose: SD 1.x was trained that way, and its pipeline does the same.
        return Conditioning(self.text_encoder(tokens.input_ids.to(device))[0])

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt with its begin and end marks; beyond max_length they are cut."""
        return len(self.tokenizer(prompt, truncation=False, verbose=False).input_ids)

    # -- denoising ---------------------------------------------------------------------------------------

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """noisy (B, C, h, w), t (B,) in [0, 1] -> prediction (B, C, h, w) float32, as the objective defines.

        The only place where latents leave float32.
        """
        unet = self.denoisers["unet"]
        weight = next(unet.parameters())
        prediction = unet(
            _onto(noisy, weight),
            self.objective.timesteps(t.to(weight.device, non_blocking=weight.device.type != "cpu")),
            encoder_hidden_states=_onto(conditioning.embeds, weight),
        ).sample
        return prediction.float()

    def pipeline(self) -> StableDiffusionPipeline:
        """diffusers' own pipeline over these very modules, with a scheduler of its own."""
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

        is_flow = isinstance(self.objective, FlowMatching)
        scheduler_class = DPMSolverMultistepScheduler if is_flow else DDIMScheduler
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=scheduler_class.from_config(self.scheduler_config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    # -- identity and files ------------------------------------------------------------------------------

    @property
    def vae_hash(self) -> str:
        """What cached latents depend on: the autoencoder's weights, their dtype, and its config."""
        return component_hash(self.vae)

    @property
    def text_encoder_hash(self) -> str:
        """What cached embeddings depend on: the encoder's weights and config, and the tokenizer."""
        parts = [
            component_hash(self.text_encoder),
            str(self.max_length),
            self.tokenizer.backend_tokenizer.to_str(),
        ]
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()

    def save_pretrained(self, folder: Path, *, dtype: torch.dtype) -> None:
        """Write a diffusers folder, all or nothing; diffusers' StableDiffusionPipeline loads it as it is."""
        from toolkit.models.sd15.saving import save_folder

        save_folder(self, folder, dtype=dtype)

    def save_single_file(
        self, path: Path, *, dtype: torch.dtype, metadata: dict[str, str] | None = None
    ) -> None:
        """Write one .safetensors file in the original key layout (no tokenizer in it), all or nothing."""
        from toolkit.models.sd15.saving import save_single_file

        save_single_file(self, path, dtype=dtype, metadata=metadata)


def _onto(values: Tensor, weight: Tensor) -> Tensor:
    """values with the device and dtype of a weight, without making the host wait for an accelerator."""
    return values.to(weight.device, weight.dtype, non_blocking=weight.device.type != "cpu")


def latent_spec(vae: AutoencoderKL, unet: UNet2DConditionModel) -> LatentSpec:
    """The geometry of the latents. Sides in pixels divide by every halving, so that none rounds."""
    downscale = 2 ** (len(vae.config.block_out_channels) - 1)
    halvings = 2 ** (len(unet.config.block_out_channels) - 1)
    return LatentSpec(vae.config.latent_channels, downscale, size_multiple=downscale * halvings)
