"""What a training needs beside its steps: loading, caching, previews, validation and saving."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch

from jobs import build
from jobs.losses import extra_prompts
from jobs.trained_model import TrainedModel
from toolkit.config_modules.process import TrainProcess
from toolkit.data.caption_draws import are_countable, possible_captions
from toolkit.data.items import MediaItem
from toolkit.data.tensor_store import tensors_hash
from toolkit.data.transforms import load_pixels
from toolkit.estimate.calibration import Speed
from toolkit.estimate.tracing import Trace
from toolkit.models.catalogue import find_architecture
from toolkit.preflight.estimate import TimePart
from toolkit.text import size

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch._subclasses.fake_tensor import FakeTensorMode

    from toolkit.config_modules.sample import SampleRequest

_HASHED = 64 * 2**20  # bytes by which copying, hashing and writing are timed
_PICTURES = 3  # that are decoded to time it


@dataclass
class Work:
    """A computation beside the steps, done `times` times, each as often as its trace's operations count."""

    what: str
    times: int
    trace: Trace


def works(
    section: TrainProcess,
    trained: TrainedModel,
    items: Sequence[MediaItem],
    accelerator: Accelerator,
    mode: FakeTensorMode,
) -> list[Work]:
    """What is computed beside the steps, traced without values."""
    found = [*_latents(section, trained, items, mode), *_captions(section, trained, items, mode)]
    found += _previews(section, trained, accelerator, mode)
    return found + _validation(section, trained, items, accelerator, mode)


def _latents(
    section: TrainProcess, trained: TrainedModel, items: Sequence[MediaItem], mode: FakeTensorMode
) -> list[Work]:
    """Latents to be cached: one picture at a time, by bucket."""
    cached = {index for index, dataset in enumerate(section.datasets) if dataset.caches_latents}
    wanted = {
        (item.sha256 or str(item.path), item.bucket, item.placement): item.bucket
        for item in items
        if int(item.dataset.partition(":")[0]) in cached
    }
    found = []
    for bucket, times in Counter(wanted.values()).items():
        with mode, torch.no_grad(), Trace() as trace:
            trained.model.encode_images(torch.empty(1, 3, bucket.height, bucket.width))
        found.append(Work("caching latents", times, trace))
    return found


def _captions(
    section: TrainProcess, trained: TrainedModel, items: Sequence[MediaItem], mode: FakeTensorMode
) -> list[Work]:
    """Texts that are encoded ahead."""
    if trained.trains_text_encoder or not are_countable(items):
        return []
    texts = list(possible_captions(items, build.seed(section)))
    every = list(dict.fromkeys([*texts, *extra_prompts(section, texts)]))
    with mode, torch.no_grad(), Trace() as trace:
        trained.model.encode_prompts(every[:1])
    return [Work("encoding captions", len(every), trace)]


def _previews(
    section: TrainProcess, trained: TrainedModel, accelerator: Accelerator, mode: FakeTensorMode
) -> list[Work]:
    """Previews: for each sampling step a prediction, without prompt too if guided; a decoding."""
    train, every = section.train, section.sample.sample_every
    if train.disable_sampling:
        return []
    rounds = train.steps // every if every else 0
    rounds += (train.steps % every != 0) if every else 1  # at the end
    rounds += not train.skip_first_sample or train.force_first_sample
    distilled = find_architecture(section.model.arch).distilled
    kinds: Counter[tuple[int, int, int, bool]] = Counter()
    for request in section.sample.requests(section.trigger_word):
        drawn: SampleRequest = build.drawable(request, section.model)
        kinds[drawn.width, drawn.height, drawn.sample_steps, drawn.guidance_scale > 1 and not distilled] += 1
    found = []
    for (width, height, steps, guided), number in kinds.items():
        with mode, torch.no_grad(), accelerator.autocast():
            with Trace(scale=steps) as trace:
                _predict(trained, 1 + guided, width, height)
            found.append(Work("previews", rounds * number, trace))
            with Trace() as trace:
                trained.model.decode_latents(torch.empty(1, *trained.model.latent_spec.shape(height, width)))
            found.append(Work("previews", rounds * number, trace))
    return found


def _predict(trained: TrainedModel, number: int, width: int, height: int) -> None:
    model = trained.model
    conditioning = model.encode_prompts(["a"] * number)
    model.predict(
        torch.empty(number, *model.latent_spec.shape(height, width)), torch.empty(number), conditioning
    )


def _validation(
    section: TrainProcess,
    trained: TrainedModel,
    items: Sequence[MediaItem],
    accelerator: Accelerator,
    mode: FakeTensorMode,
) -> list[Work]:
    """Predictions of a fixed grid for held-out pictures and as many trained ones, in the largest bucket."""
    wanted = section.held_out
    if wanted is None:
        return []
    steps = section.train.steps
    rounds = 2 + ((steps - 1) // wanted.every if wanted.every else 0)
    levels = len(wanted.noise_levels) or wanted.num_levels
    times = rounds * 2 * min(wanted.num_images, len(items)) * levels * wanted.num_noises
    bucket = max((item.bucket for item in items), key=lambda each: each.width * each.height)
    with mode, torch.no_grad(), accelerator.autocast(), Trace() as trace:
        _predict(trained, 1, bucket.width, bucket.height)
    return [Work("validation", times, trace)]


def time_parts(
    found: Sequence[Work],
    speed: Speed,
    section: TrainProcess,
    trained: TrainedModel,
    items: Sequence[MediaItem],
    state_bytes: int,
) -> list[TimePart]:
    """The time of everything beside the steps. state_bytes: of the optimizer."""
    parts = [_loading(trained), *_reading(section, items)]
    for what in dict.fromkeys(work.what for work in found):
        own = [work for work in found if work.what == what]
        seconds = sum(work.times * speed.of(work.trace.operations.values()) for work in own)
        flops = sum(work.times * work.trace.flops for work in own)
        parts.append(TimePart(what, sum(work.times for work in own), seconds, flops))
    return [*parts, _saving(section, trained, state_bytes)]


def notes(section: TrainProcess, found: Sequence[Work]) -> list[str]:
    """What is worth knowing about these times."""
    told = []
    if any(work.what in ("caching latents", "encoding captions") for work in found):
        told.append("what is in the caches already is not made again: then it takes less time")
    if section.held_out is not None:
        told.append("validation's pictures are taken to be of the largest bucket, and to be trained on too")
    return told


def _loading(trained: TrainedModel) -> TimePart:
    """Reading the weights from the file cache and hashing what caches and checkpoints are named by."""
    num_bytes = _bytes_of(trained.model.modules.values())
    copy, digest = _bytes_per_second()
    return TimePart("loading the model", 1, num_bytes / copy + num_bytes / digest)


def _reading(section: TrainProcess, items: Sequence[MediaItem]) -> list[TimePart]:
    """Pictures decoded and scaled: once each where latents are cached, else at every showing."""
    begin = time.process_time()
    tried = list(items)[:_PICTURES]
    for item in tried:
        load_pixels(item.path, item.bucket, item.placement)
    each = (time.process_time() - begin) / max(1, len(tried))
    cached = all(dataset.caches_latents for dataset in section.datasets)
    accumulation = max(1, section.train.gradient_accumulation)
    shown = section.train.steps * section.train.batch_size * accumulation
    times = len(items) if cached else shown
    return [TimePart("decoding pictures", times, times * each)]


def _saving(section: TrainProcess, trained: TrainedModel, state_bytes: int) -> TimePart:
    """Models and states written: copied, hashed and handed to the system. state_bytes: of the optimizer."""
    weights = sum(4 * value.numel() for value in trained.parameters.values())
    every = section.save.save_every
    times = 1 + ((section.train.steps - 1) // every if every else 0)
    whole = trained.network is None and trained.embedding is None
    model_bytes = _bytes_of(trained.model.modules.values()) if whole else weights
    checkpoint = weights * (1 + section.train.ema_config.use_ema) + state_bytes
    num_bytes = times * (model_bytes + checkpoint)
    return TimePart(f"saving {size(num_bytes)}", times, num_bytes * _seconds_per_saved_byte())


def _seconds_per_saved_byte() -> float:
    """What copying to new memory, hashing and writing a byte takes here."""
    data = torch.ones(_HASHED // 4)
    begin = time.process_time()
    copied = data.clone().numpy()
    hashlib.sha256(copied.data)
    with tempfile.TemporaryFile() as file:
        file.write(copied.data)
    return (time.process_time() - begin) / _HASHED


def _bytes_of(modules: Any) -> int:
    tensors = (value for module in modules for value in module.parameters())
    return sum(value.numel() * value.itemsize for value in tensors)


def _bytes_per_second() -> tuple[float, float]:
    """(copied, hashed) bytes a second here."""
    data = torch.zeros(_HASHED // 4)
    begin = time.process_time()
    data.clone()
    middle = time.process_time()
    tensors_hash({"data": data})
    end = time.process_time()
    return _HASHED / max(middle - begin, 1e-6), _HASHED / max(end - middle, 1e-6)


def program_bytes() -> int:
    """What this process has resident: python, torch and the libraries."""
    return int(psutil.Process().memory_info().rss)


def available_bytes(device: torch.device) -> int:
    """Memory of the card, or what the host has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)
