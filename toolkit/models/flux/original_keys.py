"""Key names of FLUX.1's first publication, which ComfyUI and others read, for diffusers' transformer.

There, queries, keys and values are one matrix, in single blocks with the first layer of the MLP; the last
modulation has shift before scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

# Original name -> the names in diffusers that it joins, less `.weight` and `.bias`.
_ENDS = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
# These are called `.scale` there and `.weight` here.
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
_SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}
_SWAPPED = "final_layer.adaLN_modulation.1."


def original_names(num_layers: int, num_single_layers: int, guided: bool) -> dict[str, tuple[str, ...]]:
    """Every original key of a transformer of so many blocks -> the keys in diffusers that it joins."""

    def rows() -> Iterator[tuple[str, str, Mapping[str, tuple[str, ...]], Mapping[str, str]]]:
        yield "", "", {k: v for k, v in _ENDS.items() if guided or not k.startswith("guidance_in.")}, {}
        for i in range(num_layers):
            yield f"double_blocks.{i}.", f"transformer_blocks.{i}.", _DOUBLE, _DOUBLE_NORMS
        for i in range(num_single_layers):
            yield f"single_blocks.{i}.", f"single_transformer_blocks.{i}.", _SINGLE, _SINGLE_NORMS

    names: dict[str, tuple[str, ...]] = {}
    for theirs, ours, linears, norms in rows():
        for name, parts in linears.items():
            for end in ("weight", "bias"):
                names[f"{theirs}{name}.{end}"] = tuple(f"{ours}{part}.{end}" for part in parts)
        for name, part in norms.items():
            names[f"{theirs}{name}.scale"] = (f"{ours}{part}.weight",)
    return names


def names_of(transformer: nn.Module) -> dict[str, tuple[str, ...]]:
    """Every original key of this transformer -> the keys in diffusers that it joins."""
    config = transformer.config
    return original_names(config.num_layers, config.num_single_layers, config.guidance_embeds)  # type: ignore[union-attr,arg-type]


def original_transformer(transformer: nn.Module) -> dict[str, Tensor]:
    """The transformer's weights under their original keys."""
    state = transformer.state_dict()
    joined = {
        name: torch.cat([state[part] for part in parts]) for name, parts in names_of(transformer).items()
    }
    return {name: _swap(name, value) for name, value in joined.items()}


def from_original(transformer: nn.Module, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """The weights of a transformer (which may be empty, on the meta device) from their original keys.

    read: original key -> tensor. Raises ValueError naming the first key of another shape.
    """
    wanted = {name: value.shape for name, value in transformer.state_dict().items()}
    weights: dict[str, Tensor] = {}
    for name, parts in names_of(transformer).items():
        value = _swap(name, read(name))
        sizes = [wanted[part][0] for part in parts]
        shape = (sum(sizes), *wanted[parts[0]][1:])
        if tuple(value.shape) != shape:
            raise ValueError(f"{name} is {tuple(value.shape)} where {shape} is needed")
        # Copies, so that none keeps the memory of all alive.
        weights |= {part: piece.clone() for part, piece in zip(parts, value.split(sizes), strict=True)}
    return weights


def _swap(name: str, value: Tensor) -> Tensor:
    """Halves exchanged where shift and scale are the other way round; else the value itself."""
    return torch.cat(value.chunk(2)[::-1]) if name.startswith(_SWAPPED) else value
