"""A network of peft layers, whatever their type: parameters, strength, state.

A type is a `Kind`: how peft is told to make its layers, and how they are made ready.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from toolkit.networks.key_formats import kohya_name, peft_name
from toolkit.networks.targets import find_targets, is_spatial

ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class Size:
    """Rank and alpha of the adapters; those of convolutions larger than 1 x 1 apart (None: not adapted)."""

    rank: int
    alpha: float
    conv_rank: int | None = None
    conv_alpha: float | None = None

    def of(self, module: nn.Module) -> tuple[int, float]:
        """Rank and alpha for one module."""
        if self.conv_rank is None or not is_spatial(module):
            return self.rank, self.alpha
        return self.conv_rank, self.alpha if self.conv_alpha is None else self.conv_alpha


@dataclass(frozen=True)
class Kind:
    """A type of network.

    config: keywords (rank, alpha, patterns, targets) -> peft's config. prepare: turns a layer of peft's into
    the one we train (dropout, own forward). initialise: first weights, drawn from the seed for this module.
    """

    name: str
    title: str
    layer: type[BaseTunerLayer]
    config: Callable[..., PeftConfig]
    prepare: Callable[[Any, float], None]
    initialise: Callable[[Any, int, str], None]
    set_strength: Callable[[Any, float], None]


class AdapterNetwork:
    """Adapters inside the components they were attached to; a `toolkit.networks.base.Network`."""

    def __init__(
        self, kind: Kind, layers: dict[str, dict[str, Any]], *, size: Size, dropout: float = 0.0
    ) -> None:
        self.kind = kind
        self.layers = layers
        self.size = size
        self.dropout = dropout
        self._multiplier = 1.0

    @property
    def rank(self) -> int:
        """Rank of the adapters of linear layers."""
        return self.size.rank

    @property
    def alpha(self) -> float:
        """Numerator of the scale of the adapters of linear layers."""
        return self.size.alpha

    @property
    def denoiser(self) -> str:
        """The denoiser's component, "unet" or "transformer"."""
        return "transformer" if "transformer" in self.layers else "unet"

    @property
    def num_modules(self) -> int:
        """How many modules have an adapter, over all components."""
        return sum(map(len, self.layers.values()))

    @property
    def multiplier(self) -> float:
        """Scales what the adapters add: 1 as trained, 0 the base exactly."""
        return self._multiplier

    @multiplier.setter
    def multiplier(self, value: float) -> None:
        for _, _, layer in self.named_layers():
            self.kind.set_strength(layer, value)
        self._multiplier = value

    @contextmanager
    def enabled(self, on: bool = True) -> Iterator[None]:
        """Let the adapters act (`on`) or bypass them; the state before comes back after it."""
        layers = [layer for _, _, layer in self.named_layers()]
        before = [not layer.disable_adapters for layer in layers]
        self._enable(layers, [on] * len(layers))
        try:
            yield
        finally:
            self._enable(layers, before)

    def _enable(self, layers: list[BaseTunerLayer], flags: list[bool]) -> None:
        for layer, flag in zip(layers, flags, strict=True):
            # peft couples this to requires_grad, which is not ours to change here.
            trainable = [parameter.requires_grad for parameter in layer.parameters()]
            layer.enable_adapters(flag)
            for parameter, requires_grad in zip(layer.parameters(), trainable, strict=True):
                parameter.requires_grad_(requires_grad)

    def named_layers(self) -> Iterator[tuple[str, str, Any]]:
        """(component, module path, layer) of every adapter, in the order of the model."""
        for component, layers in self.layers.items():
            for path, layer in layers.items():
                yield component, path, layer

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by peft's names (`unet.<path>.lora_A.weight`)."""
        return {
            f"{peft_name(component, path)}.{part}": parameter
            for component, path, layer in self.named_layers()
            for part, parameter in layer_parameters(layer).items()
        }

    def parameters(self, component: str) -> list[nn.Parameter]:
        """The parameters of one component, in the order of its modules; [] if it has none."""
        layers = self.layers.get(component, {}).values()
        return [parameter for layer in layers for parameter in layer_parameters(layer).values()]

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Component -> its parameters. A component without any is left out."""
        return {component: self.parameters(component) for component, layers in self.layers.items() if layers}

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the weights, float32 on the CPU, by peft's names."""
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True)
            for name, parameter in self.named_parameters().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights by name. Raises ValueError unless names and shapes are exactly its own."""
        own = self.named_parameters()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise ValueError(f"{len(odd)} names are not in both, the first is {odd[0]}")
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                raise ValueError(f"{name} is {tuple(state[name].shape)}, not {tuple(parameter.shape)}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])


def layer_parameters(layer: Any) -> dict[str, nn.Parameter]:
    """The parameters of one adapter by the part of peft's name that tells them apart."""
    found: dict[str, nn.Parameter] = {}
    for attribute in layer.adapter_layer_names:
        holder = getattr(layer, attribute, None)
        if holder is None or ADAPTER not in holder:
            continue
        held = holder[ADAPTER]
        if isinstance(held, nn.Parameter):
            found[attribute] = held
        elif isinstance(held, nn.Module) and hasattr(held, "weight"):
            suffix = "" if attribute == "lora_magnitude_vector" else ".weight"
            found[attribute + suffix] = held.weight  # type: ignore[assignment]
    return found


def scale_of(layer: Any) -> float:
    """alpha / rank of one adapter, as it acts at strength 1."""
    return float(alpha_of(layer)) / float(rank_of(layer))


def alpha_of(layer: Any) -> float:
    """The alpha of one adapter."""
    return float((layer.lora_alpha if hasattr(layer, "lora_alpha") else layer.alpha)[ADAPTER])


def rank_of(layer: Any) -> int:
    """The rank of one adapter."""
    return int(layer.r[ADAPTER])


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which modules are adapted: see toolkit.networks.targets.find_targets."""

    only_if_contains: Sequence[str] = ()
    ignore_if_contains: Sequence[str] = ()
    transformer_only: bool = True
    attn_only: bool = False


def attach(
    kind: Kind,
    components: Mapping[str, nn.Module],
    *,
    size: Size,
    seed: int,
    dropout: float,
    choice: Choice | None = None,
    paths: Mapping[str, Sequence[str]] | None = None,
) -> AdapterNetwork:
    """Attach adapters to components ("unet", "text_encoder" …) and freeze everything else in them.

    Attach after moving the components to their dtype: the adapters are float32 and should stay so. The output
    is unchanged until the first update. paths: component -> exactly these modules, instead of a choice.
    Raises ConfigError if the filters leave nothing to train.
    """
    choice = choice or Choice()
    targets = paths or find_targets(
        dict(components),
        transformer_only=choice.transformer_only,
        only_if_contains=choice.only_if_contains,
        ignore_if_contains=choice.ignore_if_contains,
        attn_only=choice.attn_only,
        conv=size.conv_rank is not None,
    )
    layers = {}
    for component, modules in targets.items():
        components[component].requires_grad_(False)
        layers[component] = _inject(kind, components[component], list(modules), size)
        for path, layer in layers[component].items():
            kind.prepare(layer, dropout)
            _as_float32(layer)
            with torch.no_grad():
                kind.initialise(layer, seed, kohya_name(component, path))
    return AdapterNetwork(kind, layers, size=size, dropout=dropout)


def _inject(kind: Kind, module: nn.Module, paths: list[str], size: Size) -> dict[str, Any]:
    if not paths:
        return {}
    if ADAPTER in getattr(module, "peft_config", {}):
        raise ValueError(f"{type(module).__name__} has an adapter already")
    sizes = {path: size.of(module.get_submodule(path)) for path in paths}
    odd = {path: each for path, each in sizes.items() if each != (size.rank, size.alpha)}
    config = kind.config(
        rank=size.rank,
        alpha=size.alpha,
        target_modules=paths,
        # peft takes the keys of these tables for patterns.
        rank_pattern={f"^{re.escape(path)}$": rank for path, (rank, _) in odd.items()},
        alpha_pattern={f"^{re.escape(path)}$": alpha for path, (_, alpha) in odd.items()},
    )
    with torch.random.fork_rng(devices=[]):  # peft's own initialisation, replaced later, draws from it
        inject_adapter_in_model(config, module, ADAPTER)
    if hasattr(module, "_hf_peft_config_loaded"):
        # As the models' add_adapter does, so that pipelines can list, load and delete adapters beside ours.
        module._hf_peft_config_loaded = True  # type: ignore[assignment]
    layers = {path: layer for path, layer in module.named_modules() if isinstance(layer, kind.layer)}
    if list(layers) != paths:
        raise AssertionError(f"peft adapted {len(layers)} modules where {len(paths)} were asked for")
    return layers


def _as_float32(layer: Any) -> None:
    """peft gives some adapters the dtype of their base; what is trained is float32."""
    for parameter in layer_parameters(layer).values():
        parameter.data = parameter.data.to(torch.float32)
        parameter.requires_grad_(True)
