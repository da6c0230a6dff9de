"""What an architecture is: the few things a trainer, an evaluator or a sampler may ask of a model.

Legend: B batch, F frames, C latent channels, H W image rows and columns, h w latent rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor, nn

from toolkit.diffusion.objectives import Objective
from toolkit.prompt_utils import Conditioning

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """Geometry of the latents: an image (3, H, W) has latents (channels, H / downscale, W / downscale).

    H and W must be multiples of `size_multiple`; `time_downscale` is 1 for pictures.
    """

    channels: int
    downscale: int
    size_multiple: int
    time_downscale: int = 1

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of one picture. Raises ValueError if a side is not a multiple of size_multiple."""
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(f"{width} x {height} px: sides must be multiples of {self.size_multiple}")
        return self.channels, height // self.downscale, width // self.downscale


@runtime_checkable
class Architecture(Protocol):
    """A loaded model. `denoisers` has one entry, or several with the range of t each serves."""

    denoisers: dict[str, nn.Module]
    text_encoders: dict[str, nn.Module]
    objective: Objective
    latent_spec: LatentSpec

    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) float32, shifted and scaled."""

    def decode_latents(self, latents: Tensor) -> Tensor:
        """latents (B, C, h, w) -> pixels (B, 3, H, W) float32, about [-1, 1]."""

    def encode_prompts(self, prompts: list[str], images: list[Tensor] | None = None) -> Conditioning:
        """B prompts -> their conditioning; gradients flow if the encoders are trained."""

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """noisy (B, C, h, w) float32, t (B,) in [0, 1] -> prediction (B, C, h, w) float32, in the objective's terms."""

    def pipeline(self) -> DiffusionPipeline:
        """diffusers' own pipeline for sampling, sharing these modules."""
