"""LoHa and LoKr (arXiv:2309.14859) on peft, in the layout of lycoris.

LoHa (arXiv:2108.06098): W + multiplier * alpha / rank * (w1_a w1_b) o (w2_a w2_b), o the elementwise product.
LoKr (arXiv:2212.10650): W + multiplier * alpha / rank * kron(w1, w2 or w2_a w2_b).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig
from peft.tuners.loha import layer as loha
from peft.tuners.lokr import layer as lokr
from torch import Generator, Tensor, nn
from torch.nn.functional import conv2d, linear

from toolkit.networks.adapters import (
    ADAPTER,
    AdapterNetwork,
    Choice,
    Kind,
    Size,
    attach,
    layer_parameters,
)
from toolkit.seeding import keyed_generator


def attach_loha(
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
) -> AdapterNetwork:
    """Attach LoHa layers to components: see toolkit.networks.adapters.attach. Raises ConfigError."""
    return attach(
        LOHA,
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


def attach_lokr(
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
    factor: int = -1,
) -> AdapterNetwork:
    """Attach LoKr layers to components: see toolkit.networks.adapters.attach. Raises ConfigError.

    factor: the smaller side of w1, -1 for the nearest to a square; rank FULL_RANK keeps w2 whole.
    """
    return attach(
        lokr_kind(factor),
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


class _HadamardLinear(loha.Linear):  # type: ignore[misc]
    """peft's layer with dropout on its input; peft's own dropouts are of rows and of whole adapters."""

    input_dropout: nn.Module

    def _get_delta_activations(self, adapter_name: str, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = self.input_dropout(input)
        weight = self.get_delta_weight(adapter_name)
        return linear(x.to(weight.dtype), weight)


class _HadamardConv2d(loha.Conv2d):  # type: ignore[misc]
    input_dropout: nn.Module

    def _get_delta_activations(self, adapter_name: str, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _convolve(self, self.input_dropout(input), self.get_delta_weight(adapter_name))


class _KroneckerLinear(lokr.Linear):  # type: ignore[misc]
    """peft's layer without its weight: kron(w1, w2) x is w1 X w2^T, with x as the matrix X."""

    input_dropout: nn.Module

    def _get_delta_activations(self, adapter_name: str, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = self.input_dropout(input)
        own = layer_parameters(self)
        w1 = own["lokr_w1"] if "lokr_w1" in own else own["lokr_w1_a"] @ own["lokr_w1_b"]
        rows = x.to(w1.dtype).unflatten(-1, (w1.shape[1], -1))
        if "lokr_w2" in own:
            rows = linear(rows, own["lokr_w2"])
        else:
            rows = linear(linear(rows, own["lokr_w2_b"]), own["lokr_w2_a"])
        # (..., in_1, out_2) -> (..., out_1, out_2); the scale is cheapest on the small factor.
        return torch.matmul(self.scaling[adapter_name] * w1, rows).flatten(-2)


class _KroneckerConv2d(lokr.Conv2d):  # type: ignore[misc]
    input_dropout: nn.Module

    def _get_delta_activations(self, adapter_name: str, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _convolve(self, self.input_dropout(input), self.get_delta_weight(adapter_name))


def _convolve(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """The base layer's convolution with another weight."""
    base = layer.get_base_layer()
    x = x.to(weight.dtype)
    return conv2d(
        x, weight, stride=base.stride, padding=base.padding, dilation=base.dilation, groups=base.groups
    )


_OWN_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    loha.Linear: _HadamardLinear,
    loha.Conv2d: _HadamardConv2d,
    lokr.Linear: _KroneckerLinear,
    lokr.Conv2d: _KroneckerConv2d,
}


def _prepare(layer: Any, dropout: float) -> None:
    # peft chooses the class of a layer by a table of its own; ours adds only a forward, no state.
    layer.__class__ = _OWN_CLASSES[type(layer)]
    layer.input_dropout = nn.Dropout(dropout) if dropout else nn.Identity()


def _set_strength(layer: Any, value: float) -> None:
    layer.set_scale(ADAPTER, value)


def _initialise_loha(layer: Any, seed: int, name: str) -> None:
    """As lycoris: w1_b and w2_b standard normal, w1_a a tenth of that, w2_a zero."""
    generator = keyed_generator("loha_init", seed, name)
    own = layer_parameters(layer)
    for part, spread in (("hada_w1_a", 0.1), ("hada_w1_b", 1.0), ("hada_w2_b", 1.0)):
        own[part].copy_(spread * torch.randn(own[part].shape, generator=generator))
    own["hada_w2_a"].zero_()


def _initialise_lokr(layer: Any, seed: int, name: str) -> None:
    """As lycoris: everything as nn.Linear is initialised, but w2, or the second factor of it, zero."""
    generator = keyed_generator("lokr_init", seed, name)
    own = layer_parameters(layer)
    zero = "lokr_w2" if "lokr_w2" in own else "lokr_w2_b"
    for part, parameter in own.items():
        if part == zero:
            parameter.zero_()
        else:
            parameter.copy_(_like_linear(parameter.shape, generator))


def _like_linear(shape: torch.Size, generator: Generator) -> Tensor:
    values = torch.empty(shape)
    nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
    return values


def _loha_config(*, rank: int, alpha: float, **options: Any) -> LoHaConfig:
    return LoHaConfig(r=rank, alpha=alpha, **options)  # type: ignore[arg-type]


def lokr_kind(factor: int) -> Kind:
    """LoKr whose w1 has `factor` as its smaller side, -1 for the nearest to a square."""

    def config(*, rank: int, alpha: float, **options: Any) -> LoKrConfig:
        return LoKrConfig(r=rank, alpha=alpha, decompose_factor=factor, **options)  # type: ignore[arg-type]

    return Kind("lokr", "LoKr", lokr.LoKrLayer, config, _prepare, _initialise_lokr, _set_strength)


LOHA = Kind("loha", "LoHa", loha.LoHaLayer, _loha_config, _prepare, _initialise_loha, _set_strength)
