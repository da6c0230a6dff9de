"""Applying an update only if it is finite, without making the host wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.errors import Problem, RunError
from toolkit.training.optimizers import settings_of
from toolkit.training.rounding import RoundedWeights

# Keys of a parameter group that its maker sets, beside the optimizer's own keywords. Others are state:
# Prodigy keeps its estimated rate there.
SETTINGS = {"lr", "use_muon"}


class GuardedOptimizer:
    """Steps an optimizer unless the loss or the gradient is not finite.

    Fused optimizers take the verdict as a device tensor (the `found_inf` that torch's GradScaler hands them)
    and skip weights and moments on the device. Others have no such entrance, and there the host must
    read the verdict before each update. rounded: the weights, where they are kept in bfloat16.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
        rounded: RoundedWeights | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.scaler = scaler
        self.rounded = rounded
        fused = any(group.get("fused") for group in optimizer.param_groups)
        self.peak_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.on_device = fused and getattr(optimizer, "_step_supports_amp_scaling", False)

    def step(self, finite: Tensor) -> None:
        """Apply the update where `finite`, a bool tensor (), holds; gradients are dropped either way."""
        if self.scaler is not None:
            # The scaler finds the same non-finite gradients while unscaling, and must see them to back off.
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self.on_device:
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            try:
                self._apply()
            finally:
                del self.optimizer.grad_scale, self.optimizer.found_inf  # type: ignore[attr-defined]
        elif bool(finite):
            self._apply()
        self.optimizer.zero_grad(set_to_none=True)
        if self.rounded is not None:
            self.rounded.drop_gradients()

    def _apply(self) -> None:
        if self.rounded is not None:
            self.rounded.step(self.optimizer, self.optimizer.step)
        else:
            self.optimizer.step()

    def set_lr(self, factor: float) -> float:
        """Set every group's rate to factor times its own peak; returns the first group's."""
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def adapted_rate(self) -> float | Tensor | None:
        """The rate that an optimizer estimates itself (times the one it is given); None for others.

        A tensor () stays on the device.
        """
        group = self.optimizer.param_groups[0]
        rate: float | Tensor | None = group["d"] * group["lr"] if "d" in group else None
        return rate

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from a saved state; what a config sets (weight decay, betas ...) is the present one's."""
        present = self.optimizer.state_dict()["param_groups"]
        settings = SETTINGS | settings_of(type(self.optimizer))
        groups = [
            group | {key: now[key] for key in settings & now.keys() - {"params"}}
            for group, now in zip(saved["param_groups"], present, strict=True)
        ]
        self.optimizer.load_state_dict(saved | {"param_groups": groups})


class Verdict:
    """A device tensor that the host reads later: copied in the background, so reading seldom waits."""

    def __init__(self, value: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._value = value

    def read(self) -> bool:
        """The value, once the copy has arrived."""
        if self._event is not None:
            self._event.synchronize()
        # numpy shares the memory; Tensor.item() would be a synchronising dispatch even on the CPU.
        return bool(self._value.cpu().numpy())


class NonFiniteError(RunError):
    """An update was refused because the loss or the gradient was not finite; the weights are untouched."""


def non_finite_error(step: int, loss: float, grad_norm: float, files: list[str]) -> NonFiniteError:
    """The error for a refused update: what was not finite, and the pictures it came from."""
    what = "loss" if loss != loss or loss in (float("inf"), float("-inf")) else "gradient"
    shown = ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
    return NonFiniteError(
        Problem(
            "run.non_finite",
            f"step {step}: the {what} is not finite (loss {loss:.4g}, gradient norm {grad_norm:.4g}); "
            f"the weights were not touched. Pictures of this step: {shown}",
            remedy="look at these files, lower train.lr, use bf16 or fp32, or set train.on_non_finite: skip",
        )
    )
