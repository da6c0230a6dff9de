"""The data of a diffusion run: caches filled, order fixed, batches streaming from any position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from jobs import build
from jobs.losses import extra_prompts, noise_maker, t_sampler
from jobs.session import Session
from toolkit.config_modules.process import DiffusionProcess
from toolkit.data.batches import BatchMaker
from toolkit.data.caption_draws import are_countable, fullest_captions, possible_captions
from toolkit.data.crops import all_drawn
from toolkit.data.items import Batch, MediaItem
from toolkit.data.latent_cache import LatentCache
from toolkit.data.order import EpochOrder
from toolkit.data.prefetch import map_ahead
from toolkit.data.prompt_cache import PromptCache
from toolkit.data.transforms import load_pixels
from toolkit.data.unchanged import Unchanged
from toolkit.errors import ModelError, Problem
from toolkit.paths import cache_root
from toolkit.text import size
from toolkit.training.out_of_memory import in_halves, telling

if TYPE_CHECKING:
    from jobs.trained_model import TrainedModel
    from toolkit.models.base import Architecture

Stream = Generator[Batch, None, None]

# Larger batches gain nothing on a CPU, and their last bits would depend on which pictures are already cached.
ENCODE_BATCH_SIZE = 1
# Embeddings of captions in memory; of up to so many texts they are kept there in any case.
MOST_PROMPT_BYTES, _FEW_TEXTS = 2**30, 64


@dataclass(frozen=True)
class TrainingData:
    """Where batches come from. stream(position) yields them endlessly from that micro-batch on.

    prompts: the captions that were encoded ahead, None while a text encoder is trained and where captions
    are drawn anew for each showing. items: the pictures' items, none for batches without pictures.
    """

    order: EpochOrder
    stream: Callable[[int], Stream]
    prompts: PromptCache | None = None
    items: Sequence[MediaItem] = ()

    def epoch_of(self, position: int) -> int:
        """The epoch that micro-batch number `position` belongs to, from 0."""
        return position // self.order.num_batches


def streaming(
    maker: BatchMaker, order: EpochOrder, num_workers: int, *, pin: bool = False
) -> Callable[[int], Stream]:
    """Batches from a position on, made ahead on threads, or (num_workers 0) each when it is asked for.

    pin: for a GPU to fetch.
    """

    def make(planned: tuple[int, tuple[int, ...]]) -> Batch:
        epoch, indices = planned
        batch = maker.make(indices, epoch)
        return batch.pinned() if pin else batch

    def stream(position: int) -> Stream:
        plan = order.batches_from(position)
        if num_workers == 0:
            return (make(planned) for planned in plan)
        return map_ahead(make, plan, workers=num_workers)

    return stream


def prepare_data(
    section: DiffusionProcess,
    items: list[MediaItem],
    trained: TrainedModel,
    session: Session,
    *,
    captions: bool = True,
) -> TrainingData:
    """Fill the caches that the section asks for; raises JobStopped if stopped meanwhile.

    captions: whether the loss reads them; without, none is encoded.
    """
    latents = _cached_latents(section, items, trained, session)
    prompts = _encoded_captions(section, items, trained, session) if captions else None
    maker = batch_maker(section, items, trained.model, latents, prompts)
    order = EpochOrder(items, section.train.batch_size, build.seed(section))
    if order.num_short:
        session.notes([
            f"{order.num_short} of {order.num_batches} batches of an epoch are smaller than batch_size "
            f"{section.train.batch_size}: the last ones of their buckets; no picture is left out or repeated"
        ])  # fmt: skip
    stream = streaming(maker, order, build.num_workers(section), pin=trained.device.type == "cuda")
    return TrainingData(order, stream, prompts, items)


def batch_maker(
    section: DiffusionProcess,
    items: Sequence[MediaItem],
    model: Architecture,
    latents: LatentCache | None,
    prompts: PromptCache | None,
) -> BatchMaker:
    """What makes batches of these items as the section asks. latents, prompts: what is cached of them."""
    return BatchMaker(
        items,
        seed=build.seed(section),
        latent_shape=lambda bucket: model.latent_spec.shape(bucket.height, bucket.width),
        sample_t=t_sampler(section.train, model),
        latent_cache=latents,
        prompt_cache=prompts,
        load=Unchanged(items).watching(load_pixels),
        make_noise=noise_maker(section.train),
        consistent_noise=section.train.force_consistent_noise,
        reg_weight=section.train.reg_weight,
        noise_candidates=section.train.optimal_noise_pairing_samples,
    )


def _encoded_captions(
    section: DiffusionProcess, items: list[MediaItem], trained: TrainedModel, session: Session
) -> PromptCache | None:
    """Every caption that the loss may read, encoded once; None if each step encodes its own.

    Raises ModelError with all captions that the text encoders cannot read whole.
    """
    if not are_countable(items):
        fullest = fullest_captions(items, trained.model.count_tokens)
        rewritten = dict.fromkeys(extra_prompts(section, fullest))
        fit_windows(trained.model, rewritten | fullest, session)
        session.say("captions are drawn anew for every showing and encoded in each step")
        return None
    texts = possible_captions(items, build.seed(section))
    rewritten = dict.fromkeys(extra_prompts(section, texts))
    return cached_prompts(section, rewritten | texts, trained, session)


def fit_windows(model: Architecture, texts: Mapping[str, MediaItem | None], session: Session) -> None:
    """Let the model fill as many windows of tokens as the longest text needs, and tell how many need more.

    texts: each with an item that has it, if any. Raises ModelError with every text that fits in no number.
    """
    needed = {text: model.windows_needed(text) for text in texts}
    long: dict[MediaItem | str, str] = {}
    for text, windows in needed.items():
        if windows > model.max_windows:
            long.setdefault(texts[text] or text, text)  # one of the texts of a picture is enough to tell
    problems = [problem for text in long.values() for problem in _too_long(model, text, texts[text])]
    if problems:
        raise ModelError(problems)
    model.num_windows = max([model.num_windows, *needed.values()])
    counts = Counter(windows for windows in needed.values() if windows > 1)
    if counts:
        parts = [f"{count} of {len(texts)} need {windows}" for windows, count in sorted(counts.items())]
        told = f"texts longer than one window of tokens: {', '.join(parts)}"
        session.notes([f"{told}; all are encoded with {model.num_windows}"])


def _too_long(model: Architecture, text: str, item: MediaItem | None) -> list[Problem]:
    """What the model says of a text that it cannot read whole, with the picture it belongs to."""
    try:
        model.encode_prompts([text])
    except ModelError as error:
        file = None if item is None else str(item.path)
        return [replace(problem, file=file) for problem in error.problems]
    raise ValueError(f"a prompt of more than {model.max_windows} windows was encoded: {text!r}")


def _cached_latents(
    section: DiffusionProcess, items: list[MediaItem], trained: TrainedModel, session: Session
) -> LatentCache | None:
    """The latents of the datasets that ask for it; on disk if any of them says so."""
    model, device = trained.model, trained.device
    wanted = {index for index, dataset in enumerate(section.datasets) if dataset.caches_latents}
    if not wanted:
        return None
    on_disk = any(section.datasets[index].cache_latents_to_disk for index in wanted)
    cache = LatentCache(cache_root() / "latents" if on_disk else None, model.vae_hash, tell=session.note)
    chosen = [item for item in items if int(item.dataset.partition(":")[0]) in wanted]
    chosen = all_drawn(chosen, build.seed(section))
    session.phase("caching", "Caching latents")
    encode = in_halves(
        lambda pixels: model.encode_images(pixels.to(device)),
        lambda number: session.say(f"note: not enough memory; encoding {number} pictures at a time"),
    )
    remedies = ("close other programs on the device", "model.dtype: bf16", "a smaller datasets.resolution")
    with telling("caching latents", remedies):
        count = cache.fill(
            chosen,
            encode,
            batch_size=ENCODE_BATCH_SIZE,
            progress=session.counted("latents"),
            should_stop=session.stop_requested,
        )
    session.say(f"latents: {count} encoded, the rest of {len(chosen)} found in the cache")
    return cache


def cached_prompts(
    section: DiffusionProcess, texts: Mapping[str, MediaItem | None], trained: TrainedModel, session: Session
) -> PromptCache | None:
    """Every text that the loss may read, encoded once; None while a text encoder is trained.

    They are kept even where the config does not ask for it: in memory, unless that took too much of it;
    `cache_text_embeddings` keeps them on disk. texts: each with an item that has it, if any.
    """
    fit_windows(trained.model, texts, session)
    if trained.trains_text_encoder:
        return None
    on_disk = section.train.cache_text_embeddings or any(d.cache_text_embeddings for d in section.datasets)
    session.phase("caching", "Encoding captions")
    with telling("encoding captions", ("close other programs on the device", "model.dtype: bf16")):
        on_disk = on_disk or _would_fill_memory(texts, trained.model, session)
        folder = cache_root() / "prompts" if on_disk else None
        cache = PromptCache(folder, trained.model.text_encoder_hash, tell=session.note)
        cache.fill(
            texts,
            trained.model.encode_prompts,
            progress=session.counted("captions"),
            should_stop=session.stop_requested,
        )
    return cache


def _would_fill_memory(texts: Mapping[str, MediaItem | None], model: Architecture, session: Session) -> bool:
    """Whether embeddings of so many texts take more memory than they should; said so if they do."""
    if len(texts) <= _FEW_TEXTS:
        return False
    with torch.no_grad():
        one = model.encode_prompts([next(iter(texts))]).tensors()
    num_bytes = len(texts) * sum(tensor.nbytes for tensor in one.values())
    if num_bytes <= MOST_PROMPT_BYTES:
        return False
    session.notes([f"{len(texts)} captions are {size(num_bytes)} of embeddings, which are kept on disk"])
    return True
