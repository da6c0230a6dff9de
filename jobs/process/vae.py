"""`type: vae`: trains an autoencoder to reconstruct the pictures of the datasets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from jobs import build
from jobs.diffusion_data import streaming
from jobs.nature import known_nature
from jobs.remedies import policies
from jobs.scanning import scan_datasets
from jobs.session import Session
from jobs.trackers import tracking
from jobs.training_run import Outputs, TrainingRun, write_previews
from toolkit.config_modules.loading import LoadedJob
from toolkit.config_modules.process import VaeProcess
from toolkit.data.batches import BatchMaker
from toolkit.data.buckets import choose_bucket, place
from toolkit.data.coverage import count_showings
from toolkit.data.image_files import inspect_image
from toolkit.data.items import Bucket, MediaItem, Placement
from toolkit.data.order import EpochOrder
from toolkit.data.transforms import load_pixels
from toolkit.data.unchanged import Unchanged
from toolkit.models.shared.autoencoders import latent_std, load_autoencoder, save_autoencoder
from toolkit.paths import resolve_path
from toolkit.training.optimizers import check_optimizer
from toolkit.training.vae_losses import VaeLossWeights, vae_losses

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

NUM_PREVIEWS = 8


def run(loaded: LoadedJob, section: VaeProcess) -> None:
    """Train the autoencoder of `model` into a folder in diffusers' layout. Raises JobStopped if stopped."""
    name = section.name or loaded.config.name
    with Session(
        loaded,
        root=build.training_root(section),
        name=name,
        total_steps=section.train.steps,
        notify=section.notify,
        nature=known_nature(section),
    ) as session:
        multiple = build.vae_size_multiple(section.model)
        shown = session.counted("pictures")
        scan = scan_datasets(section, size_multiple=multiple, rescan=loaded.rescan, progress=shown)
        session.notes([*loaded.notes, *scan.notes])
        session.phase("loading", f"Loading the autoencoder of {section.model.name_or_path}")
        accelerator, seed = build.accelerator(section), build.seed(section)
        session.keep(tracking(section, session))
        check_optimizer(section.train.optimizer, section.train.optimizer_params, device=accelerator.device)
        vae = load_autoencoder(
            build.model_path(section.model), from_config=section.model.from_config, seed=seed
        )
        vae.to(accelerator.device).train()
        if section.train.gradient_checkpointing:
            vae.enable_gradient_checkpointing()
        parameters = {f"vae.{name}": parameter for name, parameter in vae.named_parameters()}
        session.say(f"training {sum(p.numel() for p in parameters.values()) / 1e6:.2f} M weights")
        weights = VaeLossWeights(**section.vae_loss.model_dump())
        groups = [{"params": list(parameters.values())}]
        order = EpochOrder(scan.items, section.train.batch_size, seed)
        trainer = build.trainer(
            section,
            groups,
            parameters,
            accelerator,
            lambda batch: vae_losses(vae, batch, weights),
            order=order,
        )

        def save_model(path: Path, step: int) -> Path:
            with build.averaged(trainer.averages):
                vae.register_to_config(scaling_factor=round(1.0 / latent_std(vae, _probe(scan.items)), 6))
                return save_autoencoder(vae, path, dtype=build.torch_dtype(section.save.dtype))

        def preview(step: int) -> int:
            with build.averaged(trainer.averages), torch.no_grad():
                pairs = session.each(_pairs(vae, chosen), "Reconstructing", total=len(chosen))
                return write_previews(session.folder, step, pairs, section.sample.format)

        chosen = _chosen(section, scan.items)
        order = EpochOrder(scan.items, section.train.batch_size, seed)
        outputs = Outputs(
            save_model=save_model,
            preview=None if section.train.disable_sampling else preview,
            coverage=partial(count_showings, scan.items, order),
            prompts=[preview.path.stem for preview in chosen],
            **build.intervals(section),
        )
        identity = build.identity(section, order, {})
        training = TrainingRun(session, trainer, outputs, identity, policies(section))
        maker = BatchMaker(scan.items, seed=seed, load=Unchanged(scan.items).watching(load_pixels))
        session.finish(training.run(streaming(maker, order, build.num_workers(section))))


@dataclass(frozen=True)
class _Preview:
    """A picture to reconstruct, and where it is cut."""

    path: Path
    bucket: Bucket
    placement: Placement
    alpha_color: tuple[int, int, int]

    def pixels(self) -> Tensor:
        """(1, 3, H, W) in [-1, 1]."""
        return load_pixels(self.path, self.bucket, self.placement, self.alpha_color)[None]


def _chosen(section: VaeProcess, items: list[MediaItem]) -> list[_Preview]:
    """The pictures of the previews: those asked for, else a few spread evenly over the datasets."""
    first = section.datasets[0]
    multiple = build.vae_size_multiple(section.model)
    asked = []
    for source in section.sample.sources:
        path = resolve_path(source)
        facts = inspect_image(path)
        bucket = choose_bucket(facts.width, facts.height, max(first.resolution), multiple)
        asked.append(_Preview(path, bucket, place(facts.width, facts.height, bucket), first.alpha_color))
    if asked:
        return asked
    count = min(NUM_PREVIEWS, len(items))
    picked = [items[index * len(items) // count] for index in range(count)]
    return [_Preview(item.path, item.bucket, item.placement, item.alpha_color) for item in picked]


def _probe(items: list[MediaItem], count: int = 256) -> Tensor:
    """Pixels (N, 3, H, W) of up to `count` items of the first one's bucket, spread over the dataset."""
    same = [item for item in items if item.bucket == items[0].bucket]
    picked = [same[index * len(same) // min(count, len(same))] for index in range(min(count, len(same)))]
    return torch.stack([load_pixels(i.path, i.bucket, i.placement, i.alpha_color) for i in picked])


def _pairs(vae: AutoencoderKL, chosen: list[_Preview]) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
    """Original and reconstruction side by side."""
    for preview in chosen:
        pixels = preview.pixels().to(vae.device)
        latents = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
        both = torch.cat([pixels, vae.decode(latents).sample.float()], dim=3)[0]
        array = ((both.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        yield (
            Image.fromarray(array),
            {"source": preview.path.name, "left": "original", "right": "reconstruction"},
        )
