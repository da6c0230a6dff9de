"""The model of a training run: loaded, with what is trained made trainable, and saved in its own format."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from jobs import build
from toolkit.config_modules.embedding import EmbeddingConfig
from toolkit.config_modules.loading import LoadedJob
from toolkit.config_modules.network import NetworkKwargs
from toolkit.config_modules.process import DiffusionProcess
from toolkit.data.tensor_store import make_key
from toolkit.metadata import TrainedFile, build_metadata
from toolkit.models.base import Architecture
from toolkit.models.catalogue import find_architecture
from toolkit.models.shared.components import component_hash
from toolkit.models.shared.weightless import fill_with_shapes, is_weightless
from toolkit.networks.adapters import AdapterNetwork
from toolkit.networks.catalogue import FULL_RANK, resolve_network
from toolkit.networks.embedding import TextualInversion, attach_embedding, save_embedding
from toolkit.networks.key_formats import style_of
from toolkit.networks.saving import load_network, save_network
from toolkit.stable_diffusion_model import StableDiffusion

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class TrainedModel:
    """A model and the part of it that learns. groups: parameter groups with their own rates.

    trains_text_encoder: what it makes of a prompt changes while training; so it does with an embedding.
    """

    sd: StableDiffusion
    device: torch.device
    network: AdapterNetwork | None
    parameters: dict[str, nn.Parameter]
    groups: list[dict[str, Any]]
    trains_text_encoder: bool
    base_hash: str | None
    embedding: TextualInversion | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def model(self) -> Architecture:
        """The architecture, which does the work."""
        return self.sd.architecture

    @property
    def nature(self) -> dict[str, Any]:
        """What makes a checkpoint useless to a training of another model; jobs/nature.py has the rest."""
        return {"objective": self.model.objective.name, "base model": self.base_hash}

    @property
    def summary(self) -> str:
        """One line: what is trained, and how many weights that is."""
        count = sum(parameter.numel() for parameter in self.parameters.values())
        parts = (
            [] if self.network is None else [f"{self.network.num_modules} {self.network.kind.title} modules"]
        )
        if self.embedding is not None:
            parts.append(f"{self.embedding.num_vectors} vectors of '{self.embedding.trigger}'")
        what = " and ".join(parts) or "the model itself"
        size = f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"
        return f"training {what}: {size} weights on {self.device}"


def load_trained_model(section: DiffusionProcess, accelerator: Accelerator) -> TrainedModel:
    """Load the base and attach what is trained. Raises ModelError or ConfigError.

    With an embedding but no network, its vectors alone are trained.
    A frozen base is kept in `model.dtype`; what is trained stays float32 (a whole model bfloat16 if
    `train.full_bf16`), and the forward pass runs in `train.dtype` by autocast.
    """
    train, model, embedding = section.train, section.model, build.embedding_section(section)
    whole = section.network is None and embedding is None
    learned = torch.bfloat16 if train.full_bf16 else torch.float32
    dtype = learned if whole else build.torch_dtype(model.dtype or train.dtype)
    sd = build.load_model(
        model,
        dtype=dtype,
        device=accelerator.device,
        seed=build.seed(section),
        zero_terminal_snr=train.zero_terminal_snr,
        bypass_guidance_embedding=train.bypass_guidance_embedding,
    )
    architecture = sd.architecture.freeze()
    components: dict[str, nn.Module] = {}
    if train.train_unet and (whole or section.network):
        components |= architecture.denoisers
    if train.train_text_encoder:
        components |= architecture.text_encoders
    # A full fine-tune replaces the base, so there a checkpoint needs no other.
    base_hash = None if whole else _base_hash(architecture)
    notes: list[str] = []
    network = None if section.network is None else _attach(section, components, notes)
    if is_weightless():
        for module in components.values():
            fill_with_shapes(module)
    parameters: dict[str, nn.Parameter] = {}
    groups = []
    for component, module in components.items():
        if network is None:
            module.requires_grad_(True)
        own = {f"{component}.{name}": p for name, p in module.named_parameters() if p.requires_grad}
        parameters |= own
        lr = train.denoiser_lr if component in architecture.denoisers else train.encoder_lr
        groups += _groups(own, lr, None if section.network is None else section.network.network_kwargs)
        module.train()
    inversion = None
    if embedding is not None:
        inversion = _attach_embedding(embedding, architecture)
        parameters |= inversion.named_parameters()
        groups.append({"params": list(inversion.named_parameters().values()), "lr": train.vectors_lr})
        components |= architecture.denoisers  # the gradient passes through them
    if train.gradient_checkpointing:
        for module in components.values():
            _checkpoint_gradients(module)
    changing = train.train_text_encoder or inversion is not None
    return TrainedModel(
        sd, accelerator.device, network, parameters, groups, changing, base_hash, inversion, notes
    )


def _attach_embedding(wanted: EmbeddingConfig, architecture: Architecture) -> TextualInversion:
    return attach_embedding(
        architecture.text_encoders,
        architecture.tokenizers,
        trigger=wanted.trigger,
        num_vectors=wanted.tokens,
        init_words=wanted.init_words,
    )


def _base_hash(architecture: Architecture) -> str:
    """What tells one base model from another: a short hash of its denoiser."""
    hashes = [component_hash(module) for module in architecture.denoisers.values()]
    return make_key(*hashes)[:16] if len(hashes) > 1 else hashes[0][:16]


def _groups(
    parameters: dict[str, nn.Parameter], lr: float, kwargs: NetworkKwargs | None
) -> list[dict[str, Any]]:
    """The parameter groups of one component: one, or with LoRA+ another for `up` with a rate of its own."""
    ratio = None if kwargs is None else kwargs.loraplus_lr_ratio
    if ratio is None:
        return [{"params": list(parameters.values()), "lr": lr}]
    ups = [parameter for name, parameter in parameters.items() if ".lora_B." in name]
    rest = [parameter for name, parameter in parameters.items() if ".lora_B." not in name]
    return [{"params": rest, "lr": lr}, {"params": ups, "lr": lr * ratio}]


def _attach(section: DiffusionProcess, components: dict[str, nn.Module], notes: list[str]) -> AdapterNetwork:
    """The network of the section on these components, with its starting weights; notes are added to."""
    wanted = section.network
    assert wanted is not None
    options: dict[str, Any] = {"rank": wanted.rank, "alpha": wanted.alpha}
    if wanted.type == "lokr":
        options["factor"] = wanted.lokr_factor
        if wanted.lokr_full_rank:
            options |= {"rank": FULL_RANK, "alpha": FULL_RANK}
    network: AdapterNetwork = resolve_network(wanted.type)(
        components,
        **options,
        conv_rank=wanted.conv_rank,
        conv_alpha=wanted.convolution_alpha,
        seed=build.seed(section),
        dropout=wanted.dropout or 0.0,
        only_if_contains=wanted.network_kwargs.only_if_contains or (),
        ignore_if_contains=wanted.network_kwargs.ignore_if_contains or (),
        transformer_only=wanted.transformer_only,
        attn_only=wanted.network_kwargs.attn_only,
    )
    if wanted.pretrained_lora_path is not None:
        file = build.local_file(wanted.pretrained_lora_path, "network.pretrained_lora_path")
        notes += load_network(network, file).notes
    return network


def _checkpoint_gradients(module: nn.Module) -> None:
    """Recompute activations in the backward pass: diffusers and transformers name it differently."""
    if hasattr(module, "enable_gradient_checkpointing"):
        module.enable_gradient_checkpointing()  # type: ignore[operator]
    else:
        module.gradient_checkpointing_enable()  # type: ignore[operator]


def save_trained(
    loaded: LoadedJob,
    section: DiffusionProcess,
    trained: TrainedModel,
    path: Path,
    *,
    step: int,
    epoch: int,
    num_images: int,
) -> Path:
    """Write what was trained; `path` lacks its extension. Returns the file or folder.

    A network is one file, an embedding another, of its trigger's name. A full model is a diffusers folder or
    one file, as `save.save_format` says.
    """
    network, save = section.network, section.save
    dtype = build.torch_dtype(save.dtype)
    facts = TrainedFile(
        name=section.name or loaded.config.name,
        architecture=section.model.arch,
        step=step,
        epoch=epoch,
        resolution=build.resolution(section),
        base_model=section.model.name_or_path,
        network_type=network.type if network is not None else None,
        rank=network.rank if network is not None else 0,
        alpha=network.alpha if network is not None else 0.0,
        prediction_type=trained.model.objective.name,
        num_images=num_images,
        trigger_word=section.trigger_word,
        seed=build.seed(section),
        # As written: a ${VARIABLE} of the file may be a secret, and a LoRA is made to be given away.
        user=loaded.raw.get("meta") or {},
    )
    embedding = build.embedding_section(section)
    if embedding is not None and trained.embedding is not None:
        saved = _save_embedding(embedding, trained.embedding, path, facts, dtype)
        if trained.network is None:
            return saved
        path = path.with_name(build.stem_beside_embedding(facts.name) + path.name.removeprefix(facts.name))
    if trained.network is not None:
        target = path.with_name(f"{path.name}.safetensors")
        style = style_of(section.model.arch)
        save_network(trained.network, target, dtype=dtype, metadata=build_metadata(facts), style=style)
        return target
    if save.save_format == "diffusers":
        trained.sd.save_pretrained(path, dtype=dtype)
        return path
    target = path.with_name(f"{path.name}.safetensors")
    trained.sd.save_single_file(target, dtype=dtype, metadata=build_metadata(facts))
    return target


def _save_embedding(
    wanted: EmbeddingConfig, embedding: TextualInversion, path: Path, facts: TrainedFile, dtype: torch.dtype
) -> Path:
    """Write the vectors beside `path`, the trigger in place of the run's name; returns the file."""
    target = path.with_name(f"{wanted.trigger}{path.name.removeprefix(facts.name)}.{wanted.save_format}")
    metadata = build_metadata(replace(facts, name=wanted.trigger, network_type=None))
    metadata["modelspec.architecture"] += "/textual-inversion"
    keys = find_architecture(facts.architecture).embedding_keys
    save_embedding(embedding, target, keys=keys, dtype=dtype, metadata=metadata, step=facts.step)
    return target
