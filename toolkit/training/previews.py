"""Preview pictures through diffusers' own pipeline: what is seen here is what other programs will show."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from toolkit.config_modules.sample import SampleRequest
    from toolkit.models.base import Architecture
    from toolkit.training.ema import Averages


@contextmanager
def preview_context(
    architecture: Architecture,
    *,
    averages: Averages | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[None]:
    """Ready the model for sampling and put everything back: a preview leaves the next loss bit-equal.

    Inside: modules in eval mode, averaged weights in place, no gradients. Restored after: the training
    flags, the weights, and the global random generators of python, numpy and torch.
    """
    roots = list(architecture.modules.values())
    flags = [(module, module.training) for root in roots for module in root.modules()]
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(enabled=True))
        stack.enter_context(torch.no_grad())
        stack.enter_context(autocast())
        if averages is not None:
            stack.enter_context(averages.applied())
        for root in roots:
            root.eval()
        try:
            yield
        finally:
            for module, training in flags:
                module.training = training
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)


class Adjustable(Protocol):
    """Anything on the model whose strength a request can set."""

    multiplier: float


def render(
    architecture: Architecture, requests: Sequence[SampleRequest], *, network: Adjustable | None = None
) -> Iterator[Image.Image]:
    """One picture per request, in order; equal requests of one model give equal pixels.

    network: its multiplier is set to each request's and put back. Seeds of -1 must have been replaced.
    Call inside `preview_context` while training.
    """
    from toolkit.models.shared.samplers import make_scheduler

    pipeline = architecture.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    # Always from the model's own: what one sampler needs would stay in the config of the next.
    own_config = pipeline.scheduler.config
    trained_multiplier = network.multiplier if network is not None else 1.0
    try:
        for request in requests:
            pipeline.scheduler = make_scheduler(request.sampler, own_config)
            if network is not None:
                network.multiplier = request.network_multiplier
            drawn = pipeline(
                **architecture.sampling_arguments(request),
                generator=torch.Generator("cpu").manual_seed(request.seed),
            ).images[0]
            yield drawn if isinstance(drawn, Image.Image) else _decoded(architecture, pipeline, drawn)
    finally:
        if network is not None:
            network.multiplier = trained_multiplier


def _decoded(architecture: Architecture, pipeline: Any, latents: Tensor) -> Image.Image:
    """latents (C, h, w) as a pipeline gives them -> the picture."""
    with torch.no_grad():
        pixels = architecture.decode_latents(latents[None])
    picture: Image.Image = pipeline.image_processor.postprocess(pixels, output_type="pil")[0]
    return picture
