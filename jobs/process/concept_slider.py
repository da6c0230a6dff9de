"""`type: concept_slider`: trains a slider between two prompts on the noised pictures of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from jobs import build
from jobs.diffusion_data import prepare_data
from jobs.diffusion_run import Program, load_for_training, open_session, train
from jobs.scanning import scan_datasets
from jobs.session import Session
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
from toolkit.config_modules.process import ConceptSliderProcess
from toolkit.data.items import Batch

if TYPE_CHECKING:
    from toolkit.diffusion.diffusion_loss import ItemLosses
    from toolkit.prompt_utils import Conditioning


def run(loaded: LoadedJob, section: ConceptSliderProcess) -> None:
    """Train as the section says, in its run folder. Raises JobStopped if it was stopped early."""
    with open_session(loaded, section) as session:
        multiple = build.size_multiple(section.model)
        shown = session.counted("pictures")
        scan = scan_datasets(section, size_multiple=multiple, rescan=loaded.rescan, progress=shown)
        session.notes([*loaded.notes, *scan.notes])
        trained, accelerator = load_for_training(section, session)
        program = Program(
            data=prepare_data(section, scan.items, trained, session, captions=False),
            losses=_losses(section, trained, session),
            requests=partial(slider_requests, section),
            labels=slider_labels(section),
            num_pictures=scan.num_pictures,
            after_preview=partial(write_slider_sheet, section, session),
        )
        train(loaded, section, session, trained, accelerator, program=program)


def _losses(
    section: ConceptSliderProcess, trained: TrainedModel, session: Session
) -> Callable[[Batch], Generator[ItemLosses, None, None]]:
    """The loss of a batch of pictures, in parts; whatever they show, the prompts are the slider's."""
    from toolkit.diffusion.diffusion_loss import noise_latents
    from toolkit.training.slider_losses import SlidePrompts, SlideRule, slider_losses

    slider, model, network = section.slider, trained.model, network_of(trained)
    ends = (slider.target_class, slider.positive_prompt, slider.negative_prompt)
    target, positive, negative = (with_trigger(section, prompt) for prompt in ends)
    anchors = [] if slider.anchor_class is None else [with_trigger(section, slider.anchor_class)]
    encode = make_encoder(section, trained, session, [target, positive, negative, *anchors])
    rule = SlideRule(
        strength=slider.guidance_strength,
        anchor_weight=slider.anchor_strength,
        anchor_multipliers=[1.0] * len(anchors),
        normalised=True,
    )

    def losses(batch: Batch) -> Generator[ItemLosses, None, None]:
        latents = None if batch.latents is None else batch.latents.to(trained.device, non_blocking=True)
        noised = noise_latents(model, batch, latents=latents)
        prompts = SlidePrompts(
            [target] * len(batch), [positive] * len(batch), [negative] * len(batch), anchors
        )

        def condition(texts: Sequence[str]) -> Conditioning:
            return model.condition_items(encode(texts), batch)

        return slider_losses(
            model,
            network,
            noised.noisy,
            noised.t,
            prompts=prompts,
            encode=condition,
            rule=rule,
            mask=batch.mask,
            normalized=section.train.normalize_masked_loss,
        )

    return losses
