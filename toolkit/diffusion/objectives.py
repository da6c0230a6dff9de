"""What a denoiser learns to predict, and how noise is mixed into latents.

One noise variable everywhere: t (B,) float32 in [0, 1], 0 clean, 1 noise. Flow matching mixes at sigma = t.
A table schedule with T entries has the entry i at t = (i + 1) / T; any other t is rounded to that grid.

Everything here is float32, whatever dtype the denoiser has: rounding alphas_cumprod to bfloat16 makes
sigma exactly 0 at the cleanest levels, and bfloat16 has only about half of the thousand levels.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Objective(Protocol):
    """A way to add noise and the quantity to predict. All tensors float32, batch first.

    num_steps is the length T of a table schedule, None where t is continuous.
    """

    @property
    def name(self) -> str:
        """One of OBJECTIVES."""

    @property
    def num_steps(self) -> int | None:
        """T of a table schedule, or None."""

    def snap(self, t: Tensor) -> Tensor:
        """t (B,) -> the nearest noise levels that exist (B,)."""

    def timesteps(self, t: Tensor) -> Tensor:
        """t (B,) -> what the network is told (B,): int64 table index, or float32 in [0, 1000]."""

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """latents and noise (B, ...), t (B,) -> noisy (B, ...)."""

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """latents and noise (B, ...), t (B,) -> what a perfect network predicts (B, ...)."""

    def denoised(self, noisy: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """noisy and prediction (B, ...), t (B,) -> the clean latents they imply (B, ...)."""

    def snr(self, t: Tensor) -> Tensor:
        """t (B,) -> signal power / noise power (B,), 0 at pure noise, inf where there is no noise."""


def _like(values: Tensor, reference: Tensor) -> Tensor:
    """values (B,) -> (B, 1, ...) to multiply reference (B, ...)."""
    return values.reshape(-1, *[1] * (reference.ndim - 1))


class NoiseTable:
    """The cumulative signal powers of a variance-preserving schedule (DDPM, arXiv:2006.11239).

    alphas_cumprod (T,) falls from almost 1 to almost 0, or to exactly 0 (zero terminal SNR,
    arXiv:2305.08891). Raises ValueError if it is not one row of numbers in [0, 1].
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        table = alphas_cumprod.detach().float().cpu()
        if table.ndim != 1 or not len(table) or not bool(((table >= 0) & (table <= 1)).all()):
            raise ValueError(f"alphas_cumprod must be (T,) in [0, 1], got shape {tuple(table.shape)}")
        self.num_steps = len(table)
        # A copy for each device: looking a level up must not make the host wait for a transfer.
        self._tables = {table.device: table}

    def alphas_cumprod(self, device: torch.device) -> Tensor:
        """The table (T,) on a device."""
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]

    def index(self, t: Tensor) -> Tensor:
        """t (B,) in [0, 1] -> the nearest entries i (B,) int64."""
        return (torch.round(t.float() * self.num_steps).long() - 1).clamp(0, self.num_steps - 1)

    def snap(self, t: Tensor) -> Tensor:
        """t (B,) -> (i + 1) / T (B,) float32."""
        return (self.index(t) + 1).float() / self.num_steps

    def signal_power(self, t: Tensor) -> Tensor:
        """t (B,) -> alphas_cumprod at t (B,)."""
        return self.alphas_cumprod(t.device)[self.index(t)]

    def scales(self, t: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """t (B,) -> alpha and sigma, each (B, 1, ...) to multiply reference (B, ...)."""
        power = self.signal_power(t)
        return _like(power**0.5, reference), _like((1 - power) ** 0.5, reference)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha x_0 + sigma noise."""
        alpha, sigma = self.scales(t, latents)
        return alpha * latents.float() + sigma * noise.float()

    def snr(self, t: Tensor) -> Tensor:
        """alpha^2 / sigma^2 (B,)."""
        power = self.signal_power(t)
        return power / (1 - power)


class EpsilonPrediction:
    """The network predicts the noise (DDPM, arXiv:2006.11239); says nothing about x_0 at zero SNR."""

    name = "epsilon"

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.table = NoiseTable(alphas_cumprod)
        self.num_steps: int | None = self.table.num_steps

    def snap(self, t: Tensor) -> Tensor:
        """t (B,) -> (i + 1) / T (B,)."""
        return self.table.snap(t)

    def timesteps(self, t: Tensor) -> Tensor:
        """t (B,) -> table index (B,) int64."""
        return self.table.index(t)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha x_0 + sigma noise."""
        return self.table.add_noise(latents, noise, t)

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The noise itself."""
        return noise.float()

    def denoised(self, noisy: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """x_0 = (x_t - sigma prediction) / alpha."""
        alpha, sigma = self.table.scales(t, noisy)
        return (noisy.float() - sigma * prediction.float()) / alpha

    def snr(self, t: Tensor) -> Tensor:
        """alpha^2 / sigma^2 (B,)."""
        return self.table.snr(t)


class VelocityPrediction:
    """The network predicts v = alpha noise - sigma x_0 (arXiv:2202.00512), defined at zero SNR too."""

    name = "v_prediction"

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.table = NoiseTable(alphas_cumprod)
        self.num_steps: int | None = self.table.num_steps

    def snap(self, t: Tensor) -> Tensor:
        """t (B,) -> (i + 1) / T (B,)."""
        return self.table.snap(t)

    def timesteps(self, t: Tensor) -> Tensor:
        """t (B,) -> table index (B,) int64."""
        return self.table.index(t)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha x_0 + sigma noise."""
        return self.table.add_noise(latents, noise, t)

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """v = alpha noise - sigma x_0."""
        alpha, sigma = self.table.scales(t, latents)
        return alpha * noise.float() - sigma * latents.float()

    def denoised(self, noisy: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """x_0 = alpha x_t - sigma v."""
        alpha, sigma = self.table.scales(t, noisy)
        return alpha * noisy.float() - sigma * prediction.float()

    def snr(self, t: Tensor) -> Tensor:
        """alpha^2 / sigma^2 (B,)."""
        return self.table.snr(t)


class FlowMatching:
    """The network predicts the velocity from clean to noise along a straight line (arXiv:2209.03003)."""

    name = "flow"
    num_steps: int | None = None

    def snap(self, t: Tensor) -> Tensor:
        """t (B,) as it is, float32: every level exists."""
        return t.float()

    def timesteps(self, t: Tensor) -> Tensor:
        """t (B,) -> 1000 t (B,) float32."""
        return 1000.0 * t.float()

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = (1 - t) x_0 + t noise."""
        sigma = _like(t.float(), latents)
        return (1 - sigma) * latents.float() + sigma * noise.float()

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """noise - x_0."""
        return noise.float() - latents.float()

    def denoised(self, noisy: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """x_0 = x_t - t v."""
        return noisy.float() - _like(t.float(), noisy) * prediction.float()

    def snr(self, t: Tensor) -> Tensor:
        """((1 - t) / t)^2 (B,)."""
        sigma = t.float()
        return ((1 - sigma) / sigma) ** 2


# By the names that diffusers' scheduler configs use; "flow" takes no table.
OBJECTIVES: dict[str, type[EpsilonPrediction] | type[VelocityPrediction] | type[FlowMatching]] = {
    "epsilon": EpsilonPrediction,
    "v_prediction": VelocityPrediction,
    "flow": FlowMatching,
}
