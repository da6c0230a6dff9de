"""How much a training will write, and where. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.config_modules.process import DiffusionProcess, TrainProcess, VaeProcess
from toolkit.data.items import MediaItem
from toolkit.models.catalogue import find_architecture
from toolkit.models.geometry import read_json
from toolkit.models.hub_cache import cached_snapshot, hub_cache_root, pipeline_parts
from toolkit.paths import cache_root, resolve_model
from toolkit.preflight.disk import Need, folder_bytes
from toolkit.preflight.report import ModelReport
from toolkit.preflight.weights import (
    DTYPE_BYTES,
    Adapter,
    Shapes,
    adapter_weights,
    num_weights,
    read_shapes,
    state_bytes,
)
from toolkit.text import count

# Full states on disk while one is written: those kept (run_state.NUM_KEPT) and the new one.
NUM_STATES = 3
_LATENT_CHANNELS = 4
_FILE_OVERHEAD = 300  # bytes of header of one file of latents


def needs(
    process: DiffusionProcess | VaeProcess,
    folder: Path,
    items: Sequence[MediaItem],
    models: Sequence[ModelReport],
) -> list[Need]:
    """What a run writes: saved models, checkpoints, cached latents, and the download before it."""
    shapes = _shapes(process)
    trained = _num_trained(process, shapes)
    saved = _num_saved(process, shapes, trained)
    train, save = process.train, process.save
    numbered = (train.steps - 1) // save.save_every if save.save_every else 0
    copies = min(numbered, save.max_step_saves_to_keep + 1) + 1  # one more while the newest is written
    states = min(NUM_STATES, numbered + 1)
    state = None if trained is None else state_bytes(trained, train.optimizer, ema=train.ema_config.use_ema)
    there = folder_bytes(folder)
    model_bytes = None if saved is None else copies * saved * DTYPE_BYTES[save.dtype]
    found = [
        Need(count(copies, "saved model"), folder, model_bytes, existing=there),
        Need(
            count(states, "checkpoint"), folder, None if state is None else states * state,
            existing=max(0, there - (model_bytes or 0)),
        ),
    ]  # fmt: skip
    found += _latents(process, items, cached=any(folder.glob("checkpoints/step_*")))
    for model in models:
        if model.where == "hub":
            found.append(Need(f"download of {model.name}", hub_cache_root(), model.download_bytes))
    return found


def _shapes(process: DiffusionProcess | VaeProcess) -> dict[str, Shapes] | None:
    """The tensors of the base model, if its weights are on this machine."""
    name = process.model.name_or_path
    model = resolve_model(name) or cached_snapshot(name)
    if model is None:
        return None
    parts = pipeline_parts(read_json(model / "model_index.json")) if model.is_dir() else []
    parts = [part for part in parts if not part.startswith(("scheduler", "tokenizer"))]
    return read_shapes(model, parts) if parts or model.is_file() else None


def _num_trained(process: DiffusionProcess | VaeProcess, shapes: dict[str, Shapes] | None) -> int | None:
    """How many weights learn, as far as that can be told."""
    if shapes is None:
        return None
    if isinstance(process, VaeProcess):
        return num_weights({"vae": shapes["vae"]}) if "vae" in shapes else None
    embedding = process.embedding if isinstance(process, TrainProcess) else None
    chosen = {
        part: tensors
        for part, tensors in shapes.items()
        if (part in ("unet", "transformer") and process.train.train_unet)
        or (part.startswith("text_encoder") and process.train.train_text_encoder and not _is_t5(tensors))
    }
    network = process.network
    if network is None:
        return num_weights(chosen) if embedding is None else 0
    wanted = network.network_kwargs
    adapter = Adapter(
        network.type,
        network.linear,
        conv_rank=network.conv_rank,
        transformer_only=network.transformer_only,
        attn_only=wanted.attn_only,
        only_if_contains=wanted.only_if_contains or (),
        ignore_if_contains=wanted.ignore_if_contains,
    )
    return adapter_weights(chosen, adapter)


def _is_t5(tensors: Shapes) -> bool:
    """Whether an encoder is a T5, which is never trained."""
    return any("SelfAttention" in name for name in tensors)


def _num_saved(
    process: DiffusionProcess | VaeProcess, shapes: dict[str, Shapes] | None, trained: int | None
) -> int | None:
    """Numbers in one saved model: an adapter alone, or the whole model."""
    whole = isinstance(process, DiffusionProcess) and process.network is None
    if isinstance(process, TrainProcess) and process.embedding is not None:
        whole = False
    if not whole:
        return trained
    return None if shapes is None else num_weights(shapes)


def _latents(
    process: DiffusionProcess | VaeProcess, items: Sequence[MediaItem], *, cached: bool
) -> list[Need]:
    """The latents that are kept on disk, float32. cached: a run that trained before has them there."""
    if not any(dataset.cache_latents_to_disk for dataset in process.datasets):
        return []
    model = resolve_model(process.model.name_or_path) or cached_snapshot(process.model.name_or_path)
    config = {} if model is None else read_json(model / "vae" / "config.json")
    blocks, channels = config.get("block_out_channels"), config.get("latent_channels")
    shrink = 2 ** (len(blocks) - 1) if isinstance(blocks, list) and blocks else 8
    depth = channels if isinstance(channels, int) else _usual_channels(process)
    seen = {(item.sha256 or str(item.path), item.bucket, item.placement): item.bucket for item in items}
    total = sum(
        depth * (bucket.width // shrink) * (bucket.height // shrink) * 4 + _FILE_OVERHEAD
        for bucket in seen.values()
    )
    return [
        Need(
            f"latents of {count(len(seen), 'item')}",
            cache_root() / "latents",
            total,
            existing=total if cached else 0,
        )
    ]


def _usual_channels(process: DiffusionProcess | VaeProcess) -> int:
    """Latent channels where the model's files are not here: 16 for flow-matching models, 4 before them."""
    if isinstance(process, VaeProcess):
        return _LATENT_CHANNELS
    flow = find_architecture(process.model.arch).noise_scheduler == "flowmatch"
    return 16 if flow else _LATENT_CHANNELS
