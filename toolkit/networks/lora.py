"""LoRA (arXiv:2106.09685) on peft: W + multiplier * alpha / rank * up @ down, W frozen."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from toolkit.networks.key_formats import kohya_name, peft_name
from toolkit.networks.targets import find_targets
from toolkit.seeding import keyed_generator

logger = logging.getLogger(__name__)

ADAPTER = "default"


class LoraNetwork:
    """LoRA layers inside the components they were attached to; a `toolkit.networks.base.Network`."""

    def __init__(
        self, layers: dict[str, dict[str, LoraLayer]], *, rank: int, alpha: float, dropout: float = 0.0
    ) -> None:
        self.layers = layers
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self._multiplier = 1.0

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
            layer.set_scale(ADAPTER, value)
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

    def _enable(self, layers: list[LoraLayer], flags: list[bool]) -> None:
        for layer, flag in zip(layers, flags, strict=True):
            # peft couples this to requires_grad, which is not ours to change here.
            trainable = [parameter.requires_grad for parameter in layer.parameters()]
            layer.enable_adapters(flag)
            for parameter, requires_grad in zip(layer.parameters(), trainable, strict=True):
                parameter.requires_grad_(requires_grad)

    def named_layers(self) -> Iterator[tuple[str, str, LoraLayer]]:
        """(component, module path, layer) of every adapter, in the order of the model."""
        for component, layers in self.layers.items():
            for path, layer in layers.items():
                yield component, path, layer

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by peft's names (`unet.<path>.lora_A.weight`)."""
        return {
            f"{peft_name(component, path)}.{part}.weight": getattr(layer, part)[ADAPTER].weight
            for component, path, layer in self.named_layers()
            for part in ("lora_A", "lora_B")
        }

    def parameters(self, component: str) -> list[nn.Parameter]:
        """The parameters of one component, in the order of its modules; [] if it has none."""
        return [
            getattr(layer, part)[ADAPTER].weight
            for layer in self.layers.get(component, {}).values()
            for part in ("lora_A", "lora_B")
        ]

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


def attach_lora(
    components: dict[str, nn.Module],
    *,
    rank: int,
    alpha: float,
    seed: int,
    dropout: float = 0.0,
    only_if_contains: Sequence[str] | None = None,
    ignore_if_contains: Sequence[str] = (),
    transformer_only: bool = True,
) -> LoraNetwork:
    """Attach LoRA layers to components ("unet", "text_encoder") and freeze everything else in them.

    Attach after moving the components to their dtype: the adapters are float32 and should stay so.
    The output is unchanged until the first update (up is zero). Raises ConfigError if the filters leave
    nothing to train.
    """
    targets = find_targets(
        components,
        transformer_only=transformer_only,
        only_if_contains=only_if_contains or (),
        ignore_if_contains=ignore_if_contains,
    )
    _warn_of_unloadable_text_encoder(targets)
    layers = {}
    for component, paths in targets.items():
        components[component].requires_grad_(False)
        layers[component] = _inject(components[component], paths, rank=rank, alpha=alpha, dropout=dropout)
        for path, layer in layers[component].items():
            _initialize(layer, seed, kohya_name(component, path))
    return LoraNetwork(layers, rank=rank, alpha=alpha, dropout=dropout)


def _inject(
    module: nn.Module, paths: list[str], *, rank: int, alpha: float, dropout: float
) -> dict[str, LoraLayer]:
    if not paths:
        return {}
    if ADAPTER in getattr(module, "peft_config", {}):
        raise ValueError(f"{type(module).__name__} has an adapter already")
    # peft declares lora_alpha as int and only ever divides it: a fraction is fine.
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=paths)
    with torch.random.fork_rng(devices=[]):  # peft's own initialization, replaced below, draws from it
        inject_adapter_in_model(config, module, ADAPTER)
    if hasattr(module, "_hf_peft_config_loaded"):
        # As the models' add_adapter does, so that pipelines can list, load and delete adapters beside ours.
        module._hf_peft_config_loaded = True  # type: ignore[assignment]
    layers = {path: layer for path, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    if list(layers) != paths:
        raise AssertionError(f"peft adapted {len(layers)} modules where {len(paths)} were asked for")
    return layers


def _initialize(layer: LoraLayer, seed: int, name: str) -> None:
    """down as nn.Linear is initialized, drawn for this module alone; up zero; both float32 and trainable."""
    for part in (layer.lora_A, layer.lora_B):
        part[ADAPTER].to(torch.float32).requires_grad_(True)
    down = torch.empty(layer.lora_A[ADAPTER].weight.shape)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=keyed_generator("lora_init", seed, name))
    with torch.no_grad():
        layer.lora_A[ADAPTER].weight.copy_(down)
        layer.lora_B[ADAPTER].weight.zero_()


def _warn_of_unloadable_text_encoder(targets: dict[str, list[str]]) -> None:
    paths = targets.get("text_encoder", [])
    if paths and not any(path.endswith("out_proj") for path in paths):
        logger.warning(
            "the filters leave no out_proj of the text encoder; diffusers will refuse such a LoRA file "
            "('Could not automatically infer state dict type')"
        )
