"""What both kinds of slider share: prompts encoded, previews at several strengths, and their sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jobs.diffusion_data import cached_prompts
from jobs.diffusion_run import plain_requests
from jobs.losses import conditioner
from jobs.session import Session
from jobs.trained_model import TrainedModel
from toolkit.config_modules.process import ConceptSliderProcess, SliderProcess
from toolkit.config_modules.sample import SampleRequest, place_trigger
from toolkit.training.report import slider_sheet

if TYPE_CHECKING:
    from toolkit.networks.base import Network
    from toolkit.training.slider_losses import Encoder

SliderSection = ConceptSliderProcess | SliderProcess


def network_of(trained: TrainedModel) -> Network:
    """The adapter that becomes the slider."""
    assert trained.network is not None  # the config demands one
    return trained.network


def with_trigger(section: SliderSection, prompt: str) -> str:
    """The prompt with the run's trigger word for [trigger]."""
    return place_trigger(prompt, section.trigger_word)


def make_encoder(
    section: SliderSection, trained: TrainedModel, session: Session, texts: Sequence[str]
) -> Encoder:
    """A function B prompts -> conditioning on the device, for these texts only.

    They are encoded once, by the frozen encoder; where the encoder learns, each time as it is then.
    """
    condition = conditioner(trained.model, cached_prompts(section, dict.fromkeys(texts), trained, session))
    return lambda prompts: condition(prompts).to(trained.device)


def slider_requests(section: SliderSection, step: int) -> list[SampleRequest]:
    """Each preview of a step at each strength, prompt by prompt."""
    return [
        replace(request, network_multiplier=request.network_multiplier * multiplier)
        for request in plain_requests(section, step)
        for multiplier in section.slider.sample_multipliers
    ]


def slider_labels(section: SliderSection) -> list[str]:
    """A label for each of them."""
    requests = section.sample.requests(section.trigger_word)
    return [f"{each.prompt} ({m:+g})" for each in requests for m in section.slider.sample_multipliers]


def write_slider_sheet(section: SliderSection, session: Session, step: int) -> None:
    """slider_sheet.png of the previews just drawn."""
    folder, multipliers = session.folder, section.slider.sample_multipliers
    prompts = [request.prompt for request in plain_requests(section, step)]
    session.say(f"slider {slider_sheet(folder, folder.slider_sheet_path, prompts, multipliers)}")
