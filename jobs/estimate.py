"""`--check --estimate`: what a training will need, from the shapes of its very model, network and losses."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from jobs import build, estimate_rest
from jobs.losses import extra_prompts, make_losses
from jobs.probe import probe
from jobs.remedies import memory_remedies
from jobs.trained_model import TrainedModel, load_trained_model
from toolkit.accelerator import pick_device
from toolkit.config_modules.process import TrainProcess
from toolkit.data.items import Batch, Bucket, MediaItem
from toolkit.data.order import EpochOrder
from toolkit.data.prompt_cache import PromptCache
from toolkit.diffusion.diffusion_loss import ItemLosses
from toolkit.errors import ConfigError
from toolkit.estimate.calibration import BUDGET, Speed, calibrate
from toolkit.estimate.optimizer_state import OptimizerChoice, OptimizerCost, optimizer_cost
from toolkit.estimate.tracing import Operation, Trace
from toolkit.models.shared.weightless import begins_at_zero, without_weights
from toolkit.preflight.estimate import Estimate, TimePart
from toolkit.prompt_utils import concat

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch._subclasses.fake_tensor import FakeTensorMode

    from toolkit.training.trainer import Losses

MOST_TRACED = 3  # sizes of batches that are traced; the others lie between


@dataclass(frozen=True, order=True, slots=True)
class Size:
    """The size of a batch: items, and their bucket."""

    pixels: int  # of the whole batch: what sizes are ordered by
    num_items: int
    bucket: Bucket

    def __str__(self) -> str:
        return f"{self.num_items} x {self.bucket.width} x {self.bucket.height} px"


@dataclass
class TracedStep:
    """One micro-batch forward and backward. saved: bytes alive between the two; peak: at most in either."""

    trace: Trace
    saved: int
    peak: int

    def seconds(self, speed: Speed) -> float:
        """Seconds that it takes; the memory that it fills is given back after each."""
        return speed.of(self.trace.operations.values()) + self.peak * speed.per_fresh_byte


@dataclass
class Shapes:
    """A training without values: its model, what a step of each size does, and all else it computes."""

    section: TrainProcess
    trained: TrainedModel
    steps: dict[Size, TracedStep] = field(default_factory=dict)
    others: list[estimate_rest.Work] = field(default_factory=list)

    def operations(self) -> list[Operation]:
        """All that was recorded, those of steps first."""
        traces = [step.trace for step in self.steps.values()] + [work.trace for work in self.others]
        return [each for trace in traces for each in trace.operations.values()]


def estimate(
    section: TrainProcess, items: Sequence[MediaItem], *, budget: float = BUDGET, probing: bool = False
) -> Estimate:
    """Memory and time of a training on these items. Raises UserError; reads no weights unless probing.

    budget: seconds spent on timing operations of this machine, about.
    """
    notes: list[str] = []
    device = _device(section, notes)
    accelerator = build.accelerator(section.model_copy(update={"device": str(device)}))
    order = EpochOrder(items, section.train.batch_size, build.seed(section))
    sizes = sizes_of_epoch(order, items)
    with without_weights(accelerator.device) as mode:
        trained = load_trained_model(section, accelerator)
        program = estimate_rest.program_bytes()
        start = TimePart("start and imports, as of this check", 1, _since_start(device))
        shapes = Shapes(section, trained)
        for size in _chosen(sizes):
            shapes.steps[size] = _traced(section, trained, accelerator, _sample(items, size), mode)
        shapes.others = estimate_rest.works(section, trained, items, accelerator, mode)
    cost = optimizer_of(section, trained, device)
    speed = calibrate(shapes.operations(), device, budget)
    schedule = _Schedule(section, items, shapes, sizes, build.accumulation(section, order), cost)
    largest = max(sizes)
    found = Estimate(
        device=str(device),
        largest=str(largest),
        memory=memory_of(section, trained, shapes.steps[largest], cost) | {"program": program},
        flops_per_step=schedule.flops_per_step,
        seconds_per_step=schedule.seconds_per_step(speed),
        flops_per_second=speed.flops_per_second,
        measured=speed.measured,
        time=[start, *schedule.time_parts(speed)],
        available_bytes=estimate_rest.available_bytes(device),
        notes=[*notes, *estimate_rest.notes(section, shapes.others)],
    )
    if not found.fits:
        found.remedies = memory_remedies(section)
    if probing and found.fits:
        predicted = shapes.steps[largest].seconds(speed)
        found.probe = probe(section, _sample(items, largest))
        found.unprobed_seconds = found.total_seconds
        real = speed.slowed(max(0.0, found.probe.seconds_per_step - cost.seconds) / predicted)
        loading = TimePart("loading the model", 1, found.probe.loading_seconds)
        parts = [start, *schedule.time_parts(real)]
        found.time = [loading if part.what == loading.what else part for part in parts]
    elif probing:
        found.notes.append("not probed: it would not fit the memory there is")
    return found


@dataclass(frozen=True)
class _Schedule:
    """How often a run does what was traced."""

    section: TrainProcess
    items: Sequence[MediaItem]
    shapes: Shapes
    sizes: Counter[Size]
    accumulation: int
    cost: OptimizerCost

    @property
    def flops_per_step(self) -> int:
        known = {size: float(step.trace.flops) for size, step in self.shapes.steps.items()}
        return round(self.accumulation * _mean(self.sizes, known))

    def seconds_per_step(self, speed: Speed) -> float:
        known = {size: step.seconds(speed) for size, step in self.shapes.steps.items()}
        return self.accumulation * _mean(self.sizes, known) + self.cost.seconds

    def time_parts(self, speed: Speed) -> list[TimePart]:
        """The time of loading and everything after it."""
        rest = estimate_rest.time_parts(
            self.shapes.others, speed, self.section, self.shapes.trained, self.items, self.cost.num_bytes
        )
        steps = self.section.train.steps
        seconds = steps * self.seconds_per_step(speed)
        return [*rest, TimePart("training steps", steps, seconds, steps * self.flops_per_step)]


def _device(section: TrainProcess, notes: list[str]) -> torch.device:
    """The device of the run, or the CPU with a note where that is not on this machine."""
    try:
        device = pick_device(section.device)
    except ConfigError as error:
        notes.append(f"estimated for the CPU: {error.problems[0].message}")
        return torch.device("cpu")
    if device.type != "cpu":
        notes.append("the peak of a GPU may be higher by workspaces and fragments; --probe tells it")
    return device


def _since_start(device: torch.device) -> float:
    """Seconds of this process so far, by the clock that the device's steps are told by."""
    return time.process_time() if device.type == "cpu" else time.time() - psutil.Process().create_time()


def sizes_of_epoch(order: EpochOrder, items: Sequence[MediaItem]) -> Counter[Size]:
    """How many batches of an epoch have each size."""
    sizes: Counter[Size] = Counter()
    for indices in order.batches(0):
        bucket = items[indices[0]].bucket
        sizes[Size(len(indices) * bucket.width * bucket.height, len(indices), bucket)] += 1
    return sizes


def _chosen(sizes: Counter[Size]) -> list[Size]:
    """The largest, the smallest, and those that most batches have."""
    ordered = [max(sizes), min(sizes), *(size for size, _ in sizes.most_common())]
    return list(dict.fromkeys(ordered))[:MOST_TRACED]


def _mean(sizes: Counter[Size], known: dict[Size, float]) -> float:
    """The mean over an epoch's batches of what is known of some sizes and lies between them for others."""
    points = sorted((size.pixels, value) for size, value in known.items())
    return sum(
        number * (known[size] if size in known else _between(size.pixels, points))
        for size, number in sizes.items()
    ) / sum(sizes.values())


def _between(x: float, points: list[tuple[int, float]]) -> float:
    """Linear interpolation; beyond the ends in proportion."""
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    x0, y0 = points[0] if x < points[0][0] else points[-1]
    return y0 * x / x0


def _sample(items: Sequence[MediaItem], size: Size) -> tuple[MediaItem, ...]:
    """Items for a batch of a size."""
    return tuple(item for item in items if item.bucket == size.bucket)[: size.num_items]


def _traced(
    section: TrainProcess,
    trained: TrainedModel,
    accelerator: Accelerator,
    items: tuple[MediaItem, ...],
    mode: FakeTensorMode,
) -> TracedStep:
    """A micro-batch of these items forward and backward, without values."""
    with mode, Trace():  # not of the step: what was encoded before it, and what the model makes once
        batch, prompts = _batch(section, trained, items)
        losses = make_losses(section, trained, prompts)
    with mode, Trace() as trace:
        saved = _forward_and_backward(losses, batch, accelerator, trace)
    peak = trace.peak
    for parameter in trained.parameters.values():
        parameter.grad = None
    return TracedStep(trace, saved, peak)


def _forward_and_backward(losses: Losses, batch: Batch, accelerator: Accelerator, trace: Trace) -> int:
    """As the trainer does it; the bytes alive before the backward pass, of the part that keeps most."""
    saved = 0
    for share in _parts(losses, batch, accelerator):
        saved = max(saved, trace.live)
        share.backward()
    return saved


def _parts(losses: Losses, batch: Batch, accelerator: Accelerator) -> Iterator[Tensor]:
    """The loss of a batch (), whole or in the parts that it comes in."""
    with accelerator.autocast():
        made = losses(batch)
    if isinstance(made, ItemLosses):
        per_item = made.per_item
        del made
        yield (per_item * batch.weights.to(per_item.device)).sum() / len(batch)
        return
    while True:
        with accelerator.autocast():
            part = next(made, None)
        if part is None:
            return
        yield (part.per_item * batch.weights.to(part.per_item.device)).sum() / len(batch)


def _batch(
    section: TrainProcess, trained: TrainedModel, items: tuple[MediaItem, ...]
) -> tuple[Batch, PromptCache | None]:
    """A batch as the data path makes it, and the prompts that were encoded before."""
    model, first = trained.model, items[0]
    width, height = first.bucket.width, first.bucket.height
    shape = (len(items), *model.latent_spec.shape(height, width))
    captions = tuple(item.caption for item in items)
    prompts = None
    if not trained.trains_text_encoder:
        prompts = PromptCache(None, "shapes")
        prompts.fill(
            list(dict.fromkeys([*captions, *extra_prompts(section, captions)])), model.encode_prompts
        )
    cached = all(section.datasets[int(item.dataset.partition(":")[0])].caches_latents for item in items)
    found = [] if prompts is None else [prompts.get(caption) for caption in captions]
    noises = section.train
    mixed = noises.ip_noise_gamma or noises.target_noise_multiplier != 1
    return Batch(
        items=items,
        captions=captions,
        weights=torch.ones(len(items)),
        noise=torch.empty(shape),
        mixed_noise=torch.empty(shape) if mixed else None,
        t=torch.empty(len(items)),
        latents=torch.empty(shape) if cached else None,
        pixels=None if cached else torch.empty(len(items), 3, height, width),
        conditioning=concat([part for part in found if part is not None]) if found else None,
        mask=torch.empty(len(items), 1, *shape[2:]) if any(item.mask for item in items) else None,
        controls=tuple(
            torch.empty(len(items), 3, height, width) for _ in range(len(first.control_paths))
        ),
    ), prompts  # fmt: skip


def optimizer_of(section: TrainProcess, trained: TrainedModel, device: torch.device) -> OptimizerCost:
    """What the optimizer keeps and takes for what is trained."""
    train = section.train
    return optimizer_cost(
        OptimizerChoice(train.optimizer, train.optimizer_params or {}, train.lr),
        trained.parameters,
        zeros=frozenset(name for name, weight in trained.parameters.items() if begins_at_zero(weight)),
        device=device,
        averaged=train.ema_config.use_ema,
    )


def memory_of(
    section: TrainProcess, trained: TrainedModel, step: TracedStep, cost: OptimizerCost
) -> dict[str, int]:
    """Bytes by part, at the worst moment of a step."""
    weights = {
        id(value): value.numel() * value.itemsize
        for module in trained.model.modules.values()
        for value in (*module.parameters(), *module.buffers())
    }
    trained_bytes = sum(value.numel() * value.itemsize for value in trained.parameters.values())
    gradients = trained_bytes
    found = {
        "weights": sum(weights.values()),
        "trained_weights": trained_bytes,
        "gradients": gradients,
        "optimizer_state": cost.num_bytes,
        "ema": sum(4 * value.numel() for value in trained.parameters.values())
        if section.train.ema_config.use_ema
        else 0,
        "saved_activations": step.saved,
    }
    # The largest moment is in the backward pass (or in a forward pass without one): gradients are in it.
    return found | {
        "working": max(0, step.peak - step.saved - gradients),
    }
