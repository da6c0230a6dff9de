"""Between an adapter's parameters and its tensors in a file: layout, scale and rank.

A file's tensors act at alpha / rank of the file. In memory they act at the layer's own; what differs goes
into one of the factors, so that a network changes the model exactly as the file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from toolkit.networks.adapters import layer_parameters, rank_of, scale_of
from toolkit.networks.key_formats import ALPHA, DORA, DOWN, UP

# A parameter's name in peft -> its part in a file; the others are called alike.
_PARTS = {"lora_A.weight": DOWN, "lora_B.weight": UP, "lora_magnitude_vector": DORA}

# (a, b) of every product a @ b that a rank runs through, by their parts in a file.
_PRODUCTS = (
    (UP, DOWN),
    ("hada_w1_a", "hada_w1_b"),
    ("hada_w2_a", "hada_w2_b"),
    ("lokr_w1_a", "lokr_w1_b"),
    ("lokr_w2_a", "lokr_w2_b"),
)
# The factor that takes up a difference of scale: the first of these that a module has.
_SCALED = (UP, "hada_w1_a", "lokr_w1", "lokr_w1_a")


def to_file(layer: Any) -> dict[str, Tensor]:
    """The tensors of an adapter for a file, float32 on the CPU, alpha () among them.

    A LoKr whose factors are both whole has no rank in a file, and every reader takes its scale for 1; so the
    scale goes into w1.
    """
    tensors = {
        _PARTS.get(name, name): parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in layer_parameters(layer).items()
    }
    if DORA in tensors:
        weight = layer.get_base_layer().weight
        tensors[DORA] = tensors[DORA].reshape(len(weight), *[1] * (weight.ndim - 1))
    scale, rank = scale_of(layer), rank_of(layer)
    if _is_whole(tensors):
        tensors["lokr_w1"] *= scale
        scale, rank = 1.0, 1
    elif not _ranks(tensors):
        raise AssertionError(f"an adapter of {sorted(tensors)}")
    tensors[ALPHA] = torch.tensor(scale * rank)
    return tensors


def from_file(tensors: Mapping[str, Tensor], layer: Any, default_alpha: float | None) -> dict[str, Tensor]:
    """A file's tensors of one module as this adapter's parameters, by their names in peft.

    default_alpha: where the file names none (None: the rank). Another rank is brought to the layer's: see
    `resized`. Raises ValueError with the reason if they do not fit.
    """
    own = {_PARTS.get(name, name): (name, parameter) for name, parameter in layer_parameters(layer).items()}
    given = {part: tensor.float() for part, tensor in tensors.items() if part != ALPHA}
    if given.keys() != own.keys():
        raise ValueError(f"has {', '.join(sorted(given))} where {', '.join(sorted(own))} are needed")
    ranks = _ranks(given)
    rank = ranks[0] if ranks else 1
    alpha = float(tensors[ALPHA]) if ALPHA in tensors else (default_alpha or float(rank))
    scale = 1.0 if _is_whole(given) else alpha / rank
    scaled = next(part for part in _SCALED if part in given)
    given[scaled] = given[scaled] * (scale / scale_of(layer))
    for up, down in _PRODUCTS:
        if up in given and given[up].shape != own[up][1].shape:
            given[up], given[down] = resized(given[up], given[down], own[up][1], own[down][1])
    result = {}
    for part, (name, parameter) in own.items():
        tensor = given[part].reshape(parameter.shape) if part == DORA else given[part]
        if tensor.shape != parameter.shape:
            raise ValueError(f"is {tuple(tensor.shape)} where {tuple(parameter.shape)} is needed ({part})")
        result[name] = tensor
    return result


def resized(up: Tensor, down: Tensor, like_up: Tensor, like_down: Tensor) -> tuple[Tensor, Tensor]:
    """The factors (o, r) and (r, i) of a product at another rank; each may have a kernel's sizes after that.

    A larger rank keeps the product: the new columns of `up` are zero, the new rows of `down` are the first
    weights in `like_down`, so that they can learn. A smaller rank keeps the largest singular values (Eckart
    and Young 1936), split evenly between the factors. Raises ValueError if more than the rank differs.
    """
    rank, wanted = up.shape[1], like_up.shape[1]
    if (len(up), down.shape[1:]) != (len(like_up), like_down.shape[1:]) or down.shape[0] != rank:
        raise ValueError(
            f"is {tuple(up.shape)} and {tuple(down.shape)} where {tuple(like_up.shape)} and "
            f"{tuple(like_down.shape)} are needed"
        )
    if wanted > rank:
        extra = like_down.detach().to("cpu", torch.float32)[rank:]
        padding = torch.zeros(len(up), wanted - rank, *up.shape[2:])
        return torch.cat([up, padding], dim=1), torch.cat([down, extra])
    left, values, right = torch.linalg.svd(up.flatten(1) @ down.flatten(1), full_matrices=False)
    root = values[:wanted].sqrt()
    return (left[:, :wanted] * root).reshape(like_up.shape), (root[:, None] * right[:wanted]).reshape(
        like_down.shape
    )


def _is_whole(tensors: Mapping[str, Tensor]) -> bool:
    return "lokr_w1" in tensors and "lokr_w2" in tensors


def _ranks(tensors: Mapping[str, Tensor]) -> list[int]:
    """The ranks of the products that a module's tensors make."""
    return [tensors[down].shape[0] for _, down in _PRODUCTS if down in tensors]
