"""`type: slider`: trains a slider between two prompts on what the model itself draws, without pictures."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING

import torch

from jobs import build
from jobs.diffusion_run import Program, load_for_training, open_session, train
from jobs.session import Session
from jobs.slider_items import Slide, make_data, make_items, read_slides
from jobs.sliders import (
    make_encoder,
    network_of,
    slider_labels,
    slider_requests,
    with_trigger,
    write_slider_sheet,
)
from jobs.trained_model import TrainedModel
from toolkit.config_modules.loading import LoadedJob
from toolkit.config_modules.process import SliderProcess
from toolkit.data.items import Batch, MediaItem

if TYPE_CHECKING:
    from torch import Tensor

    from toolkit.diffusion.diffusion_loss import ItemLosses

# Of the drawing that the slider is trained on: LECO's own, low enough not to burn colours in.
PATH_GUIDANCE = 3.0


def run(loaded: LoadedJob, section: SliderProcess) -> None:
    """Train as the section says, in its run folder. Raises JobStopped if it was stopped early."""
    with open_session(loaded, section) as session:
        slides = read_slides(section)
        items = make_items(section, slides, build.size_multiple(section.model))
        session.notes(loaded.notes)
        trained, accelerator = load_for_training(section, session)
        model = trained.model
        program = Program(
            data=make_data(
                section, [item for item, _ in items.values()], model.latent_spec, model.objective,
                build.seed(section),
            ),
            losses=_losses(section, trained, session, items),
            requests=partial(slider_requests, section),
            labels=slider_labels(section),
            after_preview=partial(write_slider_sheet, section, session),
        )  # fmt: skip
        train(loaded, section, session, trained, accelerator, program=program)


def _losses(
    section: SliderProcess,
    trained: TrainedModel,
    session: Session,
    items: dict[str, tuple[MediaItem, Slide]],
) -> Callable[[Batch], Generator[ItemLosses, None, None]]:
    """The loss of a batch of noise, in parts: the network draws a part of the way and is corrected there."""
    from toolkit.diffusion.partial_denoising import denoise_partly, noise_levels
    from toolkit.training.slider_losses import SlidePrompts, SlideRule, at_strength, slider_losses

    slider, model, network = section.slider, trained.model, network_of(trained)
    held = [(text, anchor.multiplier) for anchor in slider.anchors for text in anchor.texts()]
    anchors = [with_trigger(section, text) for text, _ in held]
    texts = [text for _, slide in items.values() for text in (slide.target, slide.positive, slide.negative)]
    encode = make_encoder(section, trained, session, ["", *texts, *anchors])
    levels = noise_levels(model.objective, slider.max_denoising_steps)

    def draw(batch: Batch, slides: list[Slide]) -> tuple[Tensor, Tensor]:
        """Noisy latents (B, C, h, w) and their levels (B,), by the network at the batch's strength."""

        def predict(noisy: Tensor, t: Tensor, rows: Tensor) -> Tensor:
            prompts = [slides[row].target for row in rows.tolist()]
            wanted = model.predict(noisy, t, encode(prompts))
            if not any(prompts):
                return wanted
            empty = model.predict(noisy, t, encode([""] * len(prompts)))
            return empty + PATH_GUIDANCE * (wanted - empty)

        assert batch.noise is not None and batch.t is not None
        num_done = (levels == batch.t[:, None]).int().argmax(1)
        noise = batch.noise.to(trained.device)
        with torch.no_grad(), at_strength(network, batch.items[0].network_weight):
            return denoise_partly(model.objective, predict, noise, num_done, num_steps=len(levels))

    def losses(batch: Batch) -> Generator[ItemLosses, None, None]:
        slides = [items[item.id][1] for item in batch.items]
        noisy, t = draw(batch, slides)
        strength = batch.items[0].network_weight
        rule = SlideRule(
            strength=slider.guidance_strength,
            anchor_weight=slider.anchor_strength,
            anchor_multipliers=[multiplier for _, multiplier in held],
            multiplier=abs(strength),
            signs=(1.0, -1.0) if slider.batch_full_slide else (1.0 if strength > 0 else -1.0,),
        )
        prompts = SlidePrompts(
            target=[slide.target for slide in slides],
            positive=[slide.positive for slide in slides],
            negative=[slide.negative for slide in slides],
            anchors=anchors,
        )
        return slider_losses(model, network, noisy, t, prompts=prompts, encode=encode, rule=rule)

    return losses
