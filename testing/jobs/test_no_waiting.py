"""A step that does not log never makes the host wait: the real trainer on a device without values.

On torch's `meta` device tensors have shapes and no values, so whatever would ask the device for a value, or
copy one from it, fails there. What it would let pass is a copy to the device that the host waits for (one
that is not `non_blocking`); a dispatch mode looks out for those. Real devices are asked in
test_a_gpu_is_never_waited_for.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jobs import build
from jobs.losses import extra_prompts, make_losses
from jobs.trained_model import TrainedModel, load_trained_model
from testing.job_helpers import make_dataset, training_config
from testing.tiny_models import build_tiny_sd15
from toolkit.config_modules.loading import load_job
from toolkit.config_modules.process import TrainProcess
from toolkit.data.buckets import place
from toolkit.data.items import Batch, Bucket, MediaItem
from toolkit.data.order import EpochOrder
from toolkit.data.prompt_cache import PromptCache
from toolkit.paths import ROOT
from toolkit.prompt_utils import Conditioning, concat
from toolkit.training.optimizers import DEFAULTS, OPTIMIZERS
from toolkit.training.trainer import Trainer

JOBS, TOOLKIT = (str(ROOT / folder) for folder in ("jobs", "toolkit"))
META = torch.device("meta")
CAPTIONS = ("a zwx on white", "a zwx")

DOP = {"diff_output_preservation": True, "diff_output_preservation_class": "cat"}


def rarely(value: Any) -> Any:
    """A case of the slow tests."""
    return pytest.param(value, marks=pytest.mark.slow)


LOSSES: list[Any] = [
    {},
    {"loss_type": "huber", "min_snr_gamma": 5.0},
    {"inverted_mask_prior": True},
    DOP | {"do_differential_guidance": True},
    rarely({"loss_type": "mae"}),
    rarely({"loss_type": "smooth_l1", "huber_schedule": "exponential"}),
    rarely({"loss_type": "pseudo_huber", "huber_schedule": "constant"}),
    rarely({"snr_gamma": 5.0}),
    rarely({"debiased_estimation_loss": True}),
    rarely({"timestep_type": "weighted"}),
    rarely({"linear_timesteps": True}),
    rarely({"linear_timesteps2": True}),
    rarely({"noisy_latent_multiplier": 0.9, "latent_multiplier": 0.9}),
    rarely({"blank_prompt_preservation": True}),
    rarely({"on_non_finite": "skip"}),
]
NETWORKS: list[dict[str, Any] | None] = [
    {"type": "lora", "linear": 2, "dropout": 0.1},
    {"type": "locon", "linear": 2, "conv": 2},
    {"type": "dora", "linear": 2},
    {"type": "loha", "linear": 2},
    {"type": "lokr", "linear": 2},
    None,
]


class Waits(TorchDispatchMode):
    """Records copies between the CPU and the device that the host waits for.

    A number of the host, a CPU tensor (), may meet tensors of the device: it travels with the kernel's call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = function(*args, **kwargs)
        devices = {
            x.device.type for x in tree_leaves((args, kwargs, made)) if isinstance(x, Tensor) and x.ndim
        }
        if len(devices) > 1 and not kwargs.get("non_blocking", False):
            ours = [f for f in traceback.extract_stack() if f.filename.startswith((JOBS, TOOLKIT))]
            self.seen.append(
                f"{function} at {ours[-1].filename}:{ours[-1].lineno}" if ours else str(function)
            )
        return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("waiting")
    make_dataset(folder / "data")
    return build_tiny_sd15(folder / "sd15")


@pytest.fixture(autouse=True)
def allow_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two places in torch that ask for the name of a device: neither knows this one."""
    autocast = torch.autocast
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda device, **options: nullcontext() if device == "meta" else autocast(device, **options),
    )
    supported = optimizer._get_fused_kernels_supported_devices
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [*supported(), "meta"])


def items() -> tuple[MediaItem, ...]:
    """Two pictures."""
    bucket = Bucket(32, 32)
    where = place(32, 32, bucket)
    return tuple(
        MediaItem(
            id=text, path=Path("x.png"), sha256="", caption=text, dataset="d", bucket=bucket, placement=where
        )
        for text in CAPTIONS
    )


def order() -> EpochOrder:
    """Both of them in each batch."""
    return EpochOrder(items(), 2, 0)


def batches(trained: TrainedModel, *, mask: bool) -> Iterator[Batch]:
    """Batches of two items as the data path makes them, on the CPU."""
    shape = (2, *trained.model.latent_spec.shape(32, 32))
    while True:
        yield Batch(
            items=items(),
            captions=CAPTIONS,
            weights=torch.ones(2),
            noise=torch.randn(shape),
            mixed_noise=torch.randn(shape),
            t=torch.tensor([0.2, 0.9]),
            latents=torch.randn(shape),
            conditioning=trained.model.encode_prompts(list(CAPTIONS)),
            mask=torch.ones(2, 1, 8, 8) if mask else None,
        )


@pytest.fixture(scope="module")
def sections(model: Path) -> Callable[..., TrainProcess]:
    """The section of a job as changed."""

    def make(train: dict[str, Any], network: dict[str, Any] | None = NETWORKS[0]) -> TrainProcess:
        changes = {
            "datasets": [
                {
                    "folder_path": str(model.parent / "data"),
                    "resolution": 32,
                    "alpha_mask": "inverted_mask_prior" in train,
                }
            ],
            "network": network,
            "train": train | {"gradient_accumulation": 2, "ema_config": {"use_ema": True}},
            "trigger_word": "zwx",
        }
        [section] = load_job(training_config(model.parent, model, "run", **changes)).config.process
        return section

    return make


@pytest.fixture(scope="module")
def load(sections: Callable[..., TrainProcess]) -> Callable[..., TrainedModel]:
    """A model with its network on the meta device, loaded once; its text encoder keeps its values."""

    @lru_cache
    def load_named(index: int) -> TrainedModel:
        section = sections({}, NETWORKS[index])
        loaded = load_trained_model(section, build.accelerator(section))
        loaded.model.denoisers["unet"].to(META)
        return on_meta(loaded)

    return load_named


@pytest.fixture
def trainer(
    sections: Callable[..., TrainProcess], load: Callable[..., TrainedModel]
) -> Callable[..., Trainer]:
    """The trainer of a job on the meta device."""

    def make(train: dict[str, Any], network: dict[str, Any] | None = NETWORKS[0]) -> Trainer:
        section, trained = sections(train, network), load(NETWORKS.index(network))
        prompts = PromptCache(None, "encoder")
        prompts.fill([*CAPTIONS, *extra_prompts(section, CAPTIONS)], trained.model.encode_prompts)
        losses = make_losses(section, trained, prompts)
        made = build.trainer(
            section, trained.groups, trained.parameters, build.accelerator(section), losses, order=order()
        )
        made.batches = batches(trained, mask=bool(train.get("inverted_mask_prior")))
        return made

    return make


def on_meta(trained: TrainedModel) -> TrainedModel:
    """The same after its denoiser was moved, which gives it other parameters."""
    named = trained.model.denoisers["unet"].named_parameters()
    parameters = {f"unet.{name}": p for name, p in named if p.requires_grad}
    assert parameters.keys() == trained.parameters.keys()
    groups = [trained.groups[0] | {"params": list(parameters.values())}]
    return replace(trained, device=META, parameters=parameters, groups=groups)


def waits_of(made: Trainer) -> list[str]:
    """What a step waits for, after a first one that may move tables and make states."""
    made.train_step()
    with Waits() as waits:
        report = made.train_step()
    assert report.loss.device == META and report.grad_norm.device == META
    return waits.seen


@pytest.mark.parametrize("train", LOSSES, ids=str)
def test_no_loss_waits_for_the_device(trainer: Callable[..., Trainer], train: dict[str, Any]) -> None:
    assert waits_of(trainer(train)) == []


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network["type"] if network else "full")
def test_no_network_waits(trainer: Callable[..., Trainer], network: dict[str, Any] | None) -> None:
    assert waits_of(trainer({}, network)) == []


# The others have no kernel that takes the verdict along, so the host reads it before each update. SGD's has
# no form for a device without values.
FUSED = [name for name in OPTIMIZERS.names() if DEFAULTS.get(name, {}).get("fused")]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FUSED) - {"sgd"}))
def test_no_fused_optimizer_waits(trainer: Callable[..., Trainer], name: str) -> None:
    assert waits_of(trainer({"optimizer": name})) == []


def test_those_in_use_by_default_are_fused() -> None:
    assert {"adamw", "adam", "sgd"} <= set(FUSED)


def test_the_detector_sees_what_waits() -> None:
    x = torch.ones(3, device=META)
    with Waits() as waits:
        torch.ones(3).to(META, non_blocking=True)
        (x * torch.tensor(2.0)).sum()
    assert waits.seen == []
    with Waits() as waits:
        torch.ones(3).to(META)
        x[torch.tensor([0, 1])]
    assert len(waits.seen) == 2
    for ask in (x.tolist, x.sum().item, x.cpu, x.nonzero, lambda: bool(x.any())):
        with pytest.raises((RuntimeError, NotImplementedError)):
            ask()


@pytest.mark.gpu
@pytest.mark.parametrize("train", [{}, {"inverted_mask_prior": True} | DOP], ids=str)
def test_a_gpu_is_never_waited_for(sections: Callable[..., TrainProcess], train: dict[str, Any]) -> None:
    section = sections(train).model_copy(update={"device": "cuda:0"})
    accelerator = build.accelerator(section)
    trained = load_trained_model(section, accelerator)
    prompts = PromptCache(None, "encoder")
    prompts.fill([*CAPTIONS, *extra_prompts(section, CAPTIONS)], trained.model.encode_prompts)
    losses = make_losses(section, trained, prompts)
    made = build.trainer(section, trained.groups, trained.parameters, accelerator, losses, order=order())
    some = islice(batches(trained, mask="inverted_mask_prior" in train), 6)
    made.batches = iter([replace(b, conditioning=prompts_of(b, prompts)).pinned() for b in some])
    made.train_step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            report = made.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(torch.isfinite(report.loss))


def prompts_of(batch: Batch, prompts: PromptCache) -> Conditioning:
    return concat([part for caption in batch.captions if (part := prompts.get(caption)) is not None])
