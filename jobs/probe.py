"""`--check --probe`: real steps of the largest batch, through the trainer's own code; nothing is written."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jobs import build
from jobs.diffusion_data import batch_maker
from jobs.losses import extra_prompts, make_losses
from jobs.trained_model import TrainedModel, load_trained_model
from toolkit.accelerator import peak_device_bytes
from toolkit.config_modules.process import TrainProcess
from toolkit.data.caption_draws import final_caption
from toolkit.data.items import Batch, MediaItem
from toolkit.data.latent_cache import LatentCache
from toolkit.data.order import EpochOrder
from toolkit.data.prompt_cache import PromptCache
from toolkit.estimate.calibration import clock
from toolkit.preflight.estimate import ProbeReport
from toolkit.training.out_of_memory import telling

if TYPE_CHECKING:
    from toolkit.training.trainer import Trainer

TIMED = 2  # steps, after one that finds kernels and makes the optimizer's state


class SavedBytes:
    """Bytes of the storages that autograd keeps for the backward pass, each once; most: at most at a time."""

    def __init__(self, besides: Iterable[Tensor]) -> None:
        self.most = self._live = 0
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in besides}

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Inside, what is saved is counted."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
            yield

    def _pack(self, tensor: Tensor) -> Tensor:
        kept, storage = tensor.detach(), tensor.untyped_storage()
        address, num_bytes = storage.data_ptr(), storage.nbytes()
        if address not in self._seen:
            self._seen.add(address)
            self._live += num_bytes
            self.most = max(self.most, self._live)
            weakref.finalize(storage, self._freed, address, num_bytes).atexit = False
        return kept

    def _freed(self, address: int, num_bytes: int) -> None:
        self._seen.discard(address)
        self._live -= num_bytes


def probe(section: TrainProcess, largest: Sequence[MediaItem]) -> ProbeReport:
    """Train on a batch of the items `largest` for a few steps of one micro-batch. Raises UserError."""
    alone = section.model_copy(
        update={"train": section.train.model_copy(update={"gradient_accumulation": 1, "start_step": 0})}
    )
    accelerator = build.accelerator(alone)
    now = clock(accelerator.device)
    begin = now()
    remedies = ("see the estimate without --probe",)
    with telling("loading the model", remedies):
        trained = load_trained_model(alone, accelerator)
    loading = now() - begin
    with telling("the first steps", remedies):
        batch, prompts = _real_batch(alone, trained, largest)
        order = EpochOrder(largest, len(largest), build.seed(alone))
        losses = make_losses(alone, trained, prompts)
        trainer = build.trainer(alone, trained.groups, trained.parameters, accelerator, losses, order=order)
        trainer.batches = repeat(batch)
        return _measured(trainer, trained, loading)


def _measured(trainer: Trainer, trained: TrainedModel, loading: float) -> ProbeReport:
    """Steps of the trainer, timed; its tensors, counted."""
    modules = trained.model.modules.values()
    weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    saved = SavedBytes(weights)
    device = trained.device
    with saved.counted():
        trainer.train_step()
    now = clock(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begin, wall = now(), time.perf_counter()
    for _ in range(TIMED):
        report = trainer.train_step()
    seconds, wall = (now() - begin) / TIMED, (time.perf_counter() - wall) / TIMED
    trainer.judge(report)
    return ProbeReport(
        steps=TIMED,
        seconds_per_step=seconds,
        wall_seconds_per_step=wall,
        loading_seconds=loading,
        memory={
            "weights": sum(tensor.nbytes for tensor in {id(each): each for each in weights}.values()),
            "trained_weights": sum(value.nbytes for value in trained.parameters.values()),
            "gradients": _gradient_bytes(trainer),
            "optimizer_state": _state_bytes(trainer.updates.optimizer),
            "ema": 0 if trainer.ema is None else sum(t.nbytes for t in trainer.ema.shadow.values()),
            "saved_activations": saved.most,
        },
        peak_device_bytes=peak_device_bytes(device),
    )


def _gradient_bytes(trainer: Trainer) -> int:
    """Bytes of the gradients of one backward pass more."""
    trainer._backward([next(trainer.batches)], 1)
    found = sum(value.grad.nbytes for value in trainer.parameters.values() if value.grad is not None)
    for value in trainer.parameters.values():
        value.grad = None
    return found


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of everything the optimizer keeps of its parameters, each storage once."""
    own = {p.untyped_storage().data_ptr() for group in optimizer.param_groups for p in group["params"]}
    seen = {}
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in own:
                seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(seen.values())


def _real_batch(
    section: TrainProcess, trained: TrainedModel, items: Sequence[MediaItem]
) -> tuple[Batch, PromptCache | None]:
    """The batch of the items as the data path makes it, with caches in memory."""
    model, seed = trained.model, build.seed(section)
    latents = prompts = None
    cached = [section.datasets[int(item.dataset.partition(":")[0])].caches_latents for item in items]
    if all(cached):
        latents = LatentCache(None, model.vae_hash)
        latents.fill(list(items), lambda pixels: model.encode_images(pixels.to(trained.device)), batch_size=1)
    if not trained.trains_text_encoder:
        captions = [final_caption(item, seed, 0) for item in items]
        texts = list(dict.fromkeys([*captions, *extra_prompts(section, captions)]))
        model.num_windows = max([model.num_windows, *(model.windows_needed(text) for text in texts)])
        prompts = PromptCache(None, model.text_encoder_hash)
        prompts.fill(texts, model.encode_prompts)
    maker = batch_maker(section, items, model, latents, prompts)
    batch = maker.make(range(len(items)), 0)
    return (batch.pinned() if trained.device.type == "cuda" else batch), prompts
