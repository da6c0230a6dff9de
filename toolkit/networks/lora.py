"""LoRA (arXiv:2106.09685) on peft: W + multiplier * alpha / rank * up @ down, W frozen. And its kin:

LoCon, LoRA of convolutions too: down is k x k, up 1 x 1. DoRA (arXiv:2402.09353): the rows of the sum above
are rescaled to trained lengths, m V / |V|; |V| counts as a constant in the backward pass.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from toolkit.networks.adapters import ADAPTER, AdapterNetwork, Choice, Kind, Size, attach
from toolkit.seeding import keyed_generator

logger = logging.getLogger(__name__)


def attach_lora(
    components: dict[str, nn.Module],
    *,
    rank: int,
    alpha: float,
    seed: int,
    dropout: float = 0.0,
    conv_rank: int | None = None,
    conv_alpha: float | None = None,
    only_if_contains: Sequence[str] | None = None,
    ignore_if_contains: Sequence[str] = (),
    transformer_only: bool = True,
    attn_only: bool = False,
    kind: str = "lora",
) -> AdapterNetwork:
    """Attach LoRA layers to components: see toolkit.networks.adapters.attach. kind: lora or dora.

    The output is unchanged until the first update (up is zero). Raises ConfigError if the filters leave
    nothing to train.
    """
    network = attach(
        KINDS[kind],
        components,
        size=Size(rank, alpha, conv_rank, conv_alpha),
        seed=seed,
        dropout=dropout,
        choice=Choice(
            only_if_contains=only_if_contains or (),
            ignore_if_contains=ignore_if_contains,
            transformer_only=transformer_only,
            attn_only=attn_only,
        ),
    )
    _warn_of_unloadable_text_encoder(network)
    return network


attach_dora = partial(attach_lora, kind="dora")


def _config(*, rank: int, alpha: float, use_dora: bool = False, **options: Any) -> LoraConfig:
    # peft declares lora_alpha as int and only ever divides it: a fraction is fine.
    return LoraConfig(r=rank, lora_alpha=alpha, use_dora=use_dora, **options)  # type: ignore[arg-type]


def _prepare(layer: LoraLayer, dropout: float) -> None:
    layer.lora_dropout[ADAPTER] = nn.Dropout(dropout) if dropout else nn.Identity()


def _initialise(layer: LoraLayer, seed: int, name: str) -> None:
    """down as nn.Linear is initialised, drawn for this module alone; up zero."""
    down = torch.empty(layer.lora_A[ADAPTER].weight.shape)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=keyed_generator("lora_init", seed, name))
    layer.lora_A[ADAPTER].weight.copy_(down)
    layer.lora_B[ADAPTER].weight.zero_()


def _initialise_dora(layer: LoraLayer, seed: int, name: str) -> None:
    """As LoRA, and the lengths of the base's rows, in float32 whatever dtype it has."""
    _initialise(layer, seed, name)
    magnitude = layer.lora_magnitude_vector[ADAPTER]
    base = layer.get_base_layer().weight.float()
    magnitude.weight.copy_(magnitude.get_weight_norm(base, torch.zeros_like(base), scaling=1.0))


def _set_strength(layer: LoraLayer, value: float) -> None:
    layer.set_scale(ADAPTER, value)


class _Interpolation:
    """A forward hook: base + strength * (adapted - base). DoRA is no sum; no factor in it does that."""

    def __init__(self) -> None:
        self.strength = 1.0

    def __call__(self, layer: Any, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self.strength == 1 or layer.disable_adapters:
            return None
        base: Tensor = layer.base_layer(*arguments)
        return base + self.strength * (output - base)


def _prepare_dora(layer: LoraLayer, dropout: float) -> None:
    _prepare(layer, dropout)
    layer.interpolation = _Interpolation()
    layer.register_forward_hook(layer.interpolation)  # type: ignore[attr-defined]


def _set_interpolation(layer: Any, value: float) -> None:
    layer.interpolation.strength = value


KINDS = {
    "lora": Kind("lora", "LoRA", LoraLayer, _config, _prepare, _initialise, _set_strength),
    "dora": Kind(
        "dora", "DoRA", LoraLayer, partial(_config, use_dora=True), _prepare_dora, _initialise_dora,
        _set_interpolation,
    ),
}  # fmt: skip


def _warn_of_unloadable_text_encoder(network: AdapterNetwork) -> None:
    paths = network.layers.get("text_encoder", {})
    if paths and not any(path.endswith(("out_proj", ".o")) for path in paths):
        logger.warning(
            "the filters leave no out_proj of the text encoder; diffusers will refuse such a LoRA file "
            "('Could not automatically infer state dict type')"
        )
