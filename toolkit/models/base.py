"""What an architecture is: the few things a trainer, an evaluator or a sampler may ask of a model.

Legend: B batch, F frames, C latent channels, H W image rows and columns, h w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from toolkit.diffusion.objectives import Objective
from toolkit.models.shared.weightless import is_weightless
from toolkit.prompt_utils import Conditioning

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from toolkit.config_modules.sample import SampleRequest
    from toolkit.data.items import Batch


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """Geometry of the latents: an image (3, H, W) has latents (channels, H / downscale, W / downscale).

    H and W must be multiples of `size_multiple`; a transformer sees squares of `patch` by `patch` latents as
    one token; `time_downscale` is 1 for pictures.
    """

    channels: int
    downscale: int
    size_multiple: int
    patch: int = 1
    time_downscale: int = 1

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of one picture. Raises ValueError if a side is not a multiple of size_multiple."""
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(f"{width} x {height} px: sides must be multiples of {self.size_multiple}")
        return self.channels, height // self.downscale, width // self.downscale

    def num_tokens(self, height: int, width: int) -> int:
        """Tokens that a picture of so many pixels is to a transformer."""
        _, rows, columns = self.shape(height, width)
        return (rows // self.patch) * (columns // self.patch)


@runtime_checkable
class Architecture(Protocol):
    """A loaded model. `denoisers` has one entry, or several with the range of t each serves.

    modules: every network of it, the autoencoder too, under the names of diffusers' pipeline; denoisers and
    text_encoders, those that can be trained, are parts of it. num_windows: how many windows of tokens
    `encode_prompts` fills at least, so that all captions of a run have one length; max_windows: how many it can.
    """

    modules: dict[str, nn.Module]
    tokenizers: dict[str, Any]
    denoisers: dict[str, nn.Module]
    text_encoders: dict[str, nn.Module]
    objective: Objective
    latent_spec: LatentSpec
    num_windows: int
    max_windows: int

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the denoiser's own weights, adapters aside."""

    def to(self, device: torch.device | str) -> Self:
        """Move every network; returns self."""

    def freeze(self) -> Self:
        """Put every network in eval mode without gradients; returns self. Training turns it on again."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) float32, shifted and scaled."""

    def decode_latents(self, latents: Tensor) -> Tensor:
        """latents (B, C, h, w) -> pixels (B, 3, H, W) float32, about [-1, 1]."""

    def encode_prompts(self, prompts: list[str], images: list[Tensor] | None = None) -> Conditioning:
        """B prompts -> their conditioning; gradients flow if the encoders are trained.

        Raises ModelError for a prompt that would have to be cut.
        """

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt with its marks, for the encoder that bounds its length."""

    def windows_needed(self, prompt: str) -> int:
        """How many windows of tokens hold a prompt; more than max_windows cannot be read."""

    def condition_items(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        """The conditioning of B prompts with what is known of the items beside them: sizes, control pictures."""

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """noisy (B, C, h, w) float32, t (B,) in [0, 1] -> prediction (B, C, h, w) float32, in the objective's terms."""

    def pipeline(self) -> DiffusionPipeline:
        """diffusers' own pipeline for sampling, sharing these modules."""

    def sampling_arguments(self, request: SampleRequest) -> dict[str, Any]:
        """What the pipeline is called with for a request, beside its generator."""

    @property
    def vae_hash(self) -> str:
        """What cached latents depend on: the autoencoder's weights, their dtype, and its config."""

    @property
    def text_encoder_hash(self) -> str:
        """What cached embeddings depend on: encoders, tokenizers, and how many tokens are read."""

    def save_pretrained(self, folder: Path, *, dtype: torch.dtype) -> None:
        """Write a diffusers folder, all or nothing; diffusers' own pipeline loads it as it is."""

    def save_single_file(
        self, path: Path, *, dtype: torch.dtype, metadata: dict[str, str] | None = None
    ) -> None:
        """Write one .safetensors file in the layout that other programs of this architecture read."""


def freeze(modules: Mapping[str, nn.Module]) -> None:
    """Eval mode, no gradients."""
    for module in modules.values():
        module.requires_grad_(False).eval()


def move(modules: Mapping[str, nn.Module], device: torch.device | str) -> None:
    """Every network to a device; shapes without values are there already."""
    for module in modules.values():
        if not is_weightless():
            module.to(device)


def first_weight(modules: Mapping[str, nn.Module]) -> nn.Parameter:
    """A weight of the first network, for its device and dtype."""
    return next(next(iter(modules.values())).parameters())
