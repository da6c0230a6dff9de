"""The loss of a diffusion training: what the section asks for, put together from toolkit.diffusion.

The plain loss is one call. Terms that need the base model's own prediction (preservation, masked prior) come
as parts, each with its own backward pass: see toolkit.training.trainer.Losses.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.guide import Guide, make_guide
from toolkit.config_modules.process import DiffusionProcess
from toolkit.config_modules.train import TrainConfig
from toolkit.data.items import Batch, MediaItem

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from jobs.trained_model import TrainedModel
    from toolkit.data.prompt_cache import PromptCache
    from toolkit.diffusion.criteria import Criterion
    from toolkit.diffusion.diffusion_loss import ItemLosses, Multipliers, Noised
    from toolkit.diffusion.loss_weighting import Weighting
    from toolkit.models.base import Architecture
    from toolkit.networks.base import Network
    from toolkit.prompt_utils import Conditioning
    from toolkit.training.trainer import Losses

Condition = Callable[[Sequence[str]], "Conditioning"]


@dataclass(frozen=True)
class Preservation:
    """Prompts for which the trained model should answer as the base does: rewrite makes them of captions."""

    rewrite: Callable[[str], str]
    weight: float


def preservations(section: DiffusionProcess) -> list[Preservation]:
    """The preservation terms that a section asks for."""
    train, terms = section.train, []
    if train.diff_output_preservation:
        trigger, name = section.trigger_word or "", train.diff_output_preservation_class
        weight = train.diff_output_preservation_multiplier
        terms.append(Preservation(lambda caption: _reworded(caption, trigger, name), weight))
    if train.blank_prompt_preservation:
        terms.append(Preservation(lambda caption: "", train.blank_prompt_preservation_multiplier))
    return terms


def _reworded(caption: str, trigger: str, name: str) -> str:
    """The caption with the class word for the trigger word."""
    return caption.replace(trigger, name) if trigger else caption


def extra_prompts(section: DiffusionProcess, captions: Iterable[str]) -> list[str]:
    """Prompts that the loss needs beside the captions, each once, in order: what to encode ahead."""
    terms = preservations(section)
    reworded = [term.rewrite(caption) for caption in captions for term in terms]
    return list(dict.fromkeys([*reworded, *make_guide(section).prompts]))


def noise_maker(train: TrainConfig) -> Callable[..., tuple[Tensor, Tensor]]:
    """How an item's noise is drawn: ((C, h, w), generator) -> that of the target and what is mixed in."""
    from functools import partial

    from toolkit.diffusion.noise import NoiseSettings, make_noise

    settings = NoiseSettings(
        offset=train.noise_offset,
        multires_iterations=train.multires_noise_iterations,
        multires_discount=train.multires_noise_discount,
        random_multiplier=train.random_noise_multiplier,
        random_shift=train.random_noise_shift,
        multiplier=train.noise_multiplier,
        target_multiplier=train.target_noise_multiplier,
        perturbation=train.ip_noise_gamma,
    )
    return partial(make_noise, settings)


def t_sampler(train: TrainConfig, model: Architecture) -> Callable[[torch.Generator, MediaItem], Tensor]:
    """How the noise level of an item is drawn."""
    from toolkit.diffusion.timestep_sampling import make_sampler

    normal, regularisation = (
        make_sampler(
            train.timestep_type,
            objective=model.objective,
            min_step=train.min_denoising_steps,
            max_step=train.max_denoising_steps,
            bias=bias,
            shift=train.discrete_flow_shift,
        )
        for bias in (train.content_or_style, train.content_or_style_reg)
    )

    def sample(generator: torch.Generator, item: MediaItem) -> Tensor:
        _, rows, columns = model.latent_spec.shape(item.bucket.height, item.bucket.width)
        draw = regularisation if item.is_reg else normal
        return draw(generator, (rows // 2) * (columns // 2))

    return sample


def weighting(train: TrainConfig) -> Weighting | None:
    """The weights of the loss by noise level, or None if all count alike."""
    from toolkit.diffusion import loss_weighting

    chosen: list[Weighting] = []
    if train.min_snr_gamma is not None:
        chosen.append(loss_weighting.min_snr(train.min_snr_gamma))
    if train.snr_gamma is not None:
        chosen.append(loss_weighting.snr_gamma(train.snr_gamma))
    debiased = {"exact": loss_weighting.debiased, "kohya": loss_weighting.debiased_as_kohya}
    if train.debiased_estimation_loss in debiased:
        chosen.append(debiased[train.debiased_estimation_loss])
    if train.timestep_type == "weighted":
        chosen.append(loss_weighting.cosmap)
    if train.linear_timesteps2:
        chosen.append(loss_weighting.half_bell)
    elif train.linear_timesteps:
        chosen.append(loss_weighting.bell)
    return loss_weighting.product(chosen)


def make_losses(section: DiffusionProcess, trained: TrainedModel, prompts: PromptCache | None) -> Losses:
    """The per-item losses of a batch as the section weighs them. prompts: captions encoded ahead, if any."""
    from toolkit.diffusion.criteria import make_criterion
    from toolkit.diffusion.diffusion_loss import Multipliers

    train = section.train
    return LossProgram(
        model=trained.model,
        device=trained.device,
        network=trained.network,
        condition=conditioner(trained.model, prompts),
        criterion=make_criterion(
            train.loss_type, c=train.huber_c, schedule=train.huber_schedule, detail=train.wavelet_detail
        ),
        weighting=weighting(train),
        multipliers=Multipliers(train.img_multiplier, train.latent_multiplier, train.noisy_latent_multiplier),
        preservations=preservations(section),
        mask_prior=train.inverted_mask_prior_multiplier if train.inverted_mask_prior else 0.0,
        guidance=train.differential_guidance_scale if train.do_differential_guidance else None,
        guide=make_guide(section),
        normalized=train.normalize_masked_loss,
    )


def conditioner(model: Architecture, prompts: PromptCache | None) -> Condition:
    """Prompts -> their conditioning, from what was encoded ahead if anything was."""
    from toolkit.prompt_utils import concat

    def condition(captions: Sequence[str]) -> Conditioning:
        if prompts is None:
            return model.encode_prompts(list(captions))
        found = [prompts.get(caption) for caption in captions]
        missing = [caption for caption, part in zip(captions, found, strict=True) if part is None]
        if missing:
            raise ValueError(f"not in the prompt cache: {missing[0]!r}")
        return concat([part for part in found if part is not None])

    return condition


@dataclass(frozen=True)
class LossProgram:
    """batch -> per-item losses, whole or in parts. mask_prior, guidance: 0 and None are off.

    normalized: a masked item's loss is the mean over what its mask lets count, else over all of it.
    """

    model: Architecture
    device: torch.device
    network: Network | None
    condition: Condition
    criterion: Criterion
    weighting: Weighting | None
    multipliers: Multipliers
    preservations: Sequence[Preservation] = ()
    mask_prior: float = 0.0
    guidance: float | None = None
    guide: Guide = Guide()
    normalized: bool = True

    def __call__(self, batch: Batch) -> ItemLosses | Generator[ItemLosses, None, None]:
        """The losses of a batch that is still on the CPU."""
        if self.preservations or self._strength(batch) != 1:
            return self._parts(batch)
        return self._main(batch, self._noised(batch))

    def _parts(self, batch: Batch) -> Generator[ItemLosses, None, None]:
        with self._at_strength_of(batch):
            noised = self._noised(batch)
            yield self._main(batch, noised)
            for term in self.preservations:
                yield self._preserved(batch, noised, term)

    def _noised(self, batch: Batch) -> Noised:
        from toolkit.diffusion.diffusion_loss import noise_latents

        latents = None if batch.latents is None else batch.latents.to(self.device, non_blocking=True)
        return noise_latents(self.model, batch, latents=latents, multipliers=self.multipliers)

    def _main(self, batch: Batch, noised: Noised) -> ItemLosses:
        """The error of the prediction, and where a mask leaves pixels out how far it is from the base's."""
        conditioning = batch.conditioning
        if conditioning is None:
            conditioning = self.condition(batch.captions)
        conditioning = self._of_items(conditioning, batch)
        masked = self.mask_prior > 0 and batch.mask is not None
        based = masked or self.guide.match_base > 0
        base = self._base(noised, conditioning) if based else None
        prediction = self.model.predict(noised.noisy, noised.t, conditioning)
        prediction, target = self._shaped(batch, noised, prediction, base)
        if self.guidance is not None:
            # Beyond the target as seen from here; the prediction in it is a constant of this step.
            now = prediction.detach().float()
            target = now + self.guidance * (target - now)
        losses = self._errors(prediction, target, noised, mask=batch.mask)
        if base is None or batch.mask is None or not masked:
            return losses
        left_out = 1 - batch.mask
        return losses.plus(self._errors(prediction, base, noised, mask=left_out), self.mask_prior)

    def _shaped(
        self, batch: Batch, noised: Noised, prediction: Tensor, base: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What is compared: the prediction with guidance and corrections, and where it should be."""
        import torch

        def predict(prompts: Sequence[str]) -> Tensor:
            conditioning = self._of_items(self.condition(prompts), batch)
            return self.model.predict(noised.noisy, noised.t, conditioning)

        if not self.guide.wanted:
            return prediction, noised.target
        target = noised.target
        if self.guide.aims_beyond:
            with torch.no_grad():
                target = self.guide.beyond(batch, target, predict)
        return self.guide.corrected(batch, prediction, target, base, predict), target

    def _preserved(self, batch: Batch, noised: Noised, term: Preservation) -> ItemLosses:
        """term.weight times how far the prediction for the rewritten prompts is from the base model's."""
        prompts = [term.rewrite(caption) for caption in batch.captions]
        conditioning = self._of_items(self.condition(prompts), batch)
        base = self._base(noised, conditioning)
        prediction = self.model.predict(noised.noisy, noised.t, conditioning)
        losses = self._errors(prediction, base, noised)
        return type(losses)(losses.sums * term.weight, losses.counts)

    def _errors(
        self, prediction: Tensor, target: Tensor, noised: Noised, mask: Tensor | None = None
    ) -> ItemLosses:
        from toolkit.diffusion.diffusion_loss import errors_of

        return errors_of(
            self.model,
            prediction,
            target,
            noised.t,
            criterion=self.criterion,
            weighting=self.weighting,
            mask=mask,
            normalized=self.normalized,
        )

    def _base(self, noised: Noised, conditioning: Any) -> Tensor:
        """What the model predicts without its network (B, C, h, w), without a gradient."""
        import torch

        assert self.network is not None  # checked with the config
        with torch.no_grad(), self.network.enabled(False):
            return self.model.predict(noised.noisy, noised.t, conditioning)

    def _of_items(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        return self.model.condition_items(conditioning.to(self.device), batch)

    def _strength(self, batch: Batch) -> float:
        return batch.items[0].network_weight if self.network is not None else 1.0

    def _at_strength_of(self, batch: Batch) -> AbstractContextManager[None]:
        """The network at the strength that the batch's dataset asks for."""
        from toolkit.training.slider_losses import at_strength

        if self.network is None:
            return nullcontext()
        return at_strength(self.network, self.network.multiplier * self._strength(batch))
