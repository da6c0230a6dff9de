"""`StableDiffusion`: the face of a loaded model for jobs, tools and users' scripts.

    sd = StableDiffusion.load("tiny-sd")
    image = sd.pipeline()("a red circle", height=32, width=32).images[0]

Legend: B batch, C latent channels, H W image rows and columns, h w latent rows and columns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toolkit.diffusion.objectives import Objective
from toolkit.models.base import Architecture, LatentSpec
from toolkit.models.catalogue import find_architecture
from toolkit.models.geometry import infer_architecture
from toolkit.prompt_utils import Conditioning
from toolkit.quiet import hush_libraries

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class StableDiffusion:
    """One-line delegation over an architecture, which does the work."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.loras: dict[str, float] = {}  # what model_utils.apply_lora put on it, with the multipliers

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike[str], *, arch: str | None = None, **options: Any
    ) -> StableDiffusion:
        """Load a model by folder, file, hub id or embedded name. Raises ModelError.

        arch: its architecture (None: what a local folder or file holds, else Stable Diffusion 1.x).
        options are those of the architecture's loader: dtype, device, vae_path, from_config, seed,
        prediction_type ...
        """
        hush_libraries()
        arch = arch or infer_architecture(os.fspath(name_or_path))
        return cls(find_architecture(arch).load()(name_or_path, **options))

    @property
    def unet(self) -> nn.Module:
        """The denoiser, whatever its kind; the first where there are several."""
        return next(iter(self.architecture.denoisers.values()))

    @property
    def vae(self) -> nn.Module:
        """The autoencoder between pixels and latents."""
        return self.architecture.modules["vae"]

    @property
    def text_encoder(self) -> nn.Module:
        """The network that reads prompts; the first where there are several."""
        return next(iter(self.architecture.text_encoders.values()))

    @property
    def tokenizer(self) -> Any:
        """What cuts a prompt into tokens; the first where there are several."""
        return next(iter(self.architecture.tokenizers.values()))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Every network of the model, under the names of diffusers' pipeline."""
        return self.architecture.modules

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return self.architecture.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the denoiser's weights."""
        return self.architecture.dtype

    @property
    def objective(self) -> Objective:
        """How noise is added and what is predicted."""
        return self.architecture.objective

    @property
    def latent_spec(self) -> LatentSpec:
        """The geometry of the latents."""
        return self.architecture.latent_spec

    def to(self, device: torch.device | str) -> StableDiffusion:
        """Move every component; returns self."""
        self.architecture.to(device)
        return self

    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) float32."""
        return self.architecture.encode_images(pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """latents (B, C, h, w) -> pixels (B, 3, H, W) float32, about [-1, 1]."""
        return self.architecture.decode_latents(latents)

    def encode_prompt(self, prompt: str | list[str]) -> Conditioning:
        """One prompt or B of them -> their conditioning."""
        return self.architecture.encode_prompts([prompt] if isinstance(prompt, str) else prompt)

    def predict_noise(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """noisy (B, C, h, w), t (B,) in [0, 1] -> the denoiser's prediction (B, C, h, w) float32."""
        return self.architecture.predict(noisy, t, conditioning)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """latents and noise (B, C, h, w), t (B,) in [0, 1] -> noisy (B, C, h, w) float32."""
        return self.objective.add_noise(latents, noise, t)

    def get_loss_target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """latents and noise (B, C, h, w), t (B,) -> what predict_noise should return (B, C, h, w)."""
        return self.objective.target(latents, noise, t)

    def pipeline(self) -> DiffusionPipeline:
        """diffusers' own pipeline for sampling, sharing these modules."""
        return self.architecture.pipeline()

    def save_pretrained(self, folder: Path, *, dtype: torch.dtype) -> None:
        """Write a diffusers folder, all or nothing."""
        self.architecture.save_pretrained(folder, dtype=dtype)

    def save_single_file(
        self, path: Path, *, dtype: torch.dtype, metadata: dict[str, str] | None = None
    ) -> None:
        """Write one .safetensors file in the original key layout, all or nothing."""
        self.architecture.save_single_file(path, dtype=dtype, metadata=metadata)
