"""Guidance while training, and corrections of the prediction: what the section asks for, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from jobs import build
from toolkit.config_modules.process import DiffusionProcess
from toolkit.data.items import Batch
from toolkit.paths import resolve_path
from toolkit.seeding import keyed_random

if TYPE_CHECKING:
    from torch import Tensor

Predict = Callable[[Sequence[str]], "Tensor"]  # B prompts -> prediction (B, C, h, w) for them


@dataclass(frozen=True)
class Guide:
    """Scales are pairs between which one is drawn for each item; None is off.

    cfg: the prediction is guided away from one of `negatives`, rescaled by `rescale`. target: the target is
    pushed away from the prediction for `unconditional`, scaled first if zero_star, by its scale at pure noise
    and, if rising, by 1 where there is none. Then the prediction goes
    a share `match_base` of the way to the base's statistics, to the target's norm if match_norm, and is
    multiplied by `scale`.
    """

    seed: int = 0
    cfg: tuple[float, float] | None = None
    negatives: Sequence[str] = ("",)
    rescale: float = 0.0
    target: tuple[float, float] | None = None
    unconditional: str = ""
    zero_star: bool = False
    rising: bool = False
    match_base: float = 0.0
    match_norm: bool = False
    scale: float = 1.0

    @property
    def wanted(self) -> bool:
        """Whether anything is done at all."""
        corrected = self.match_base > 0 or self.match_norm or self.scale != 1
        return self.cfg is not None or self.aims_beyond or corrected

    @property
    def aims_beyond(self) -> bool:
        """Whether the target is another one than the noise says."""
        return self.target is not None

    @property
    def prompts(self) -> list[str]:
        """Texts that are needed beside the captions."""
        negatives = list(self.negatives) if self.cfg is not None else []
        return [*negatives, *([self.unconditional] if self.aims_beyond else [])]

    def beyond(self, batch: Batch, target: Tensor, predict: Predict) -> Tensor:
        """The target (B, C, h, w) pushed away from what the model predicts for the unconditional prompt."""
        from toolkit.diffusion.guidance import guidance_target

        assert self.target is not None
        unconditional = predict([self.unconditional] * len(batch)).to(target.dtype)
        scale = self._scales("guidance loss", batch, self.target)
        if self.rising and batch.t is not None:
            scale = 1 + (scale - 1) * batch.t
        return guidance_target(target, unconditional, scale, zero_star=self.zero_star)

    def corrected(
        self, batch: Batch, prediction: Tensor, target: Tensor, base: Tensor | None, predict: Predict
    ) -> Tensor:
        """The prediction (B, C, h, w) as it is compared with the target, float32."""
        from toolkit.diffusion.guidance import guided, match_channels, match_norm

        result = prediction.float()
        if self.cfg is not None:
            scale = self._scales("cfg", batch, self.cfg)
            negative = predict(self._negatives(batch)).float()
            result = guided(result, negative, scale, rescale=self.rescale)
        if self.match_base > 0 and base is not None:
            result = match_channels(result, base.float(), self.match_base)
        if self.match_norm:
            result = match_norm(result, target.to(result.device, result.dtype))
        return result * self.scale

    def _scales(self, stream: str, batch: Batch, between: tuple[float, float]) -> Tensor:
        """A scale (B,) for each item."""
        import torch

        low, high = between
        return torch.tensor([draw.uniform(low, high) for draw in self._draws(stream, batch)])

    def _negatives(self, batch: Batch) -> list[str]:
        return [draw.choice(self.negatives) for draw in self._draws("negative", batch)]

    def _draws(self, stream: str, batch: Batch) -> Iterator[Random]:
        """A generator for each item, keyed by what is new of it in every epoch: noise level and noise."""
        for index, item in enumerate(batch.items):
            fresh = [
                float(values[index].reshape(-1)[0]) for values in (batch.t, batch.noise) if values is not None
            ]
            yield keyed_random(stream, self.seed, item.id, *fresh)


def make_guide(section: DiffusionProcess) -> Guide:
    """The guide of a section."""
    train = section.train
    cfg = None
    if train.do_random_cfg:
        cfg = (1.0, train.largest_cfg_scale)
    elif train.do_cfg:
        cfg = (train.cfg_scale, train.cfg_scale)
    wanted = train.guidance_loss_target
    low, high = wanted if isinstance(wanted, list) else (wanted, wanted)
    return Guide(
        seed=build.seed(section),
        cfg=cfg,
        negatives=negative_prompts(train.negative_prompt) if cfg is not None else ("",),
        rescale=train.cfg_rescale,
        target=(low, high) if train.do_guidance_loss else None,
        unconditional=train.unconditional_prompt,
        zero_star=train.do_guidance_loss_cfg_zero,
        rising=train.guidance_loss_schedule == "sigma",
        match_base=train.correct_pred_norm_multiplier if train.correct_pred_norm else 0.0,
        match_norm=train.match_noise_norm,
        scale=train.pred_scaler,
    )


def negative_prompts(written: str | None) -> list[str]:
    """The prompt itself, or the lines of the text file that it names, which was checked with the config."""
    if written is None or not written.lower().endswith(".txt"):
        return [written or ""]
    lines = [line.strip() for line in resolve_path(written).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]
