"""Which modules of a model get an adapter: kohya's sets, transformer blocks, less what filters leave out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from toolkit.errors import ConfigError, Problem
from toolkit.networks.key_formats import canonical_path, kohya_name

FILTERS_KEY = "network.network_kwargs"


@dataclass(frozen=True, slots=True)
class TargetRule:
    """Linear layers and 1 x 1 convolutions inside modules of these classes are adapted.

    `outside` names the classes that are added with `transformer_only: false`, and with `conv`, which takes
    their larger convolutions too; `leaves`, if given, are the only last names taken.
    """

    inside: frozenset[str]
    outside: frozenset[str] = frozenset()
    leaves: frozenset[str] | None = None


# The UNet set is the one of kohya's LoRA; `outside` holds the containers its LoCon adds, that is
# time_emb_proj and conv_shortcut of the residual blocks. The time embedding belongs to neither: few
# tools train it. The text encoder set is complete on purpose: diffusers cannot tell the format of a
# file whose text encoder lacks out_proj, and then refuses all of it.
_TEXT_ENCODER = TargetRule(
    inside=frozenset({"CLIPAttention", "CLIPMLP", "T5Attention", "T5LayerFF"}),
    leaves=frozenset({"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "q", "k", "v", "o", "wi",
                      "wi_0", "wi_1", "wo"}),
)  # fmt: skip
RULES = {
    "unet": TargetRule(
        inside=frozenset({"Transformer2DModel"}),
        outside=frozenset({"ResnetBlock2D", "Downsample2D", "Upsample2D"}),
    ),
    "transformer": TargetRule(
        inside=frozenset({"FluxTransformerBlock", "FluxSingleTransformerBlock", "JointTransformerBlock"}),
        outside=frozenset({"FluxTransformer2DModel", "SD3Transformer2DModel"}),
    ),
    "text_encoder": _TEXT_ENCODER,
    "text_encoder_2": _TEXT_ENCODER,
}


def find_targets(
    components: dict[str, nn.Module],
    *,
    transformer_only: bool = True,
    only_if_contains: Sequence[str] = (),
    ignore_if_contains: Sequence[str] = (),
    attn_only: bool = False,
    conv: bool = False,
) -> dict[str, list[str]]:
    """Component -> module paths to adapt, in the order of the model; a component may end up with none.

    A filter is a substring of the dotted name (`unet.mid_block.attentions.0...`) or of kohya's name
    (`lora_unet_mid_block_attentions_0...`); `ignore_if_contains` wins. Raises ConfigError if nothing is
    left, or if a filter matches no module at all (most likely a typing mistake). attn_only: only modules of
    attention layers. conv: convolutions of residual blocks and of down- and upsampling too.
    """
    candidates = {
        component: list(
            _candidates(
                module, RULES[component], wide=conv or not transformer_only, conv=conv, attn_only=attn_only
            )
        )
        for component, module in components.items()
    }
    adaptable = [names(component, path) for component, paths in candidates.items() for path in paths]
    everything = [names(component, path) for component, module in components.items()
                  for path, _ in module.named_modules() if path]  # fmt: skip
    problems = [
        *_unmatched("only_if_contains", only_if_contains, adaptable),
        *_unmatched("ignore_if_contains", ignore_if_contains, everything, examples=adaptable),
    ]
    if problems:
        raise ConfigError(problems)
    chosen = {
        component: [
            path
            for path in paths
            if (not only_if_contains or _contains_any(names(component, path), only_if_contains))
            and not _contains_any(names(component, path), ignore_if_contains)
        ]
        for component, paths in candidates.items()
    }
    if not any(chosen.values()):
        raise ConfigError(_nothing_left(adaptable))
    return chosen


def names(component: str, path: str) -> tuple[str, ...]:
    """The names under which a filter may mean a module."""
    return f"{component}.{canonical_path(component, path)}", kohya_name(component, path)


def _candidates(
    root: nn.Module, rule: TargetRule, *, wide: bool, conv: bool, attn_only: bool
) -> Iterator[str]:
    containers = rule.inside | rule.outside if wide else rule.inside

    def takes(name: str, module: nn.Module) -> bool:
        return _is_adaptable(module, conv=conv) and (rule.leaves is None or name in rule.leaves)

    def walk(module: nn.Module, path: str, inside: bool, attends: bool) -> Iterator[str]:
        for name, child in module.named_children():
            child_path = f"{path}.{name}" if path else name
            kind = type(child).__name__
            if inside and (attends or not attn_only) and takes(name, child):
                yield child_path
            else:
                yield from walk(
                    child, child_path, inside or kind in containers, attends or "Attention" in kind
                )

    return walk(root, "", type(root).__name__ in containers, False)


def _is_adaptable(module: nn.Module, *, conv: bool) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and (conv or module.kernel_size == (1, 1))
    return isinstance(module, nn.Linear)


def is_spatial(module: nn.Module) -> bool:
    """Whether a module is a convolution larger than 1 x 1, which has a rank of its own."""
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)


def _contains_any(module_names: tuple[str, ...], parts: Sequence[str]) -> bool:
    return any(part in name for part in parts for name in module_names)


def _unmatched(
    key: str,
    parts: Sequence[str],
    searched: list[tuple[str, ...]],
    examples: list[tuple[str, ...]] | None = None,
) -> Iterator[Problem]:
    for part in parts:
        if not any(_contains_any(module_names, [part]) for module_names in searched):
            yield Problem(
                "network.filter_matches_nothing",
                f"'{part}' is part of no module's name",
                key=f"{FILTERS_KEY}.{key}",
                remedy=_examples(examples or searched),
            )


def _nothing_left(adaptable: list[tuple[str, ...]]) -> Problem:
    if not adaptable:
        return Problem("network.no_modules", "this model has no modules that a LoRA can adapt", key="network")
    return Problem(
        "network.no_modules",
        f"the filters leave none of {len(adaptable)} modules to train",
        key=FILTERS_KEY,
        remedy=_examples(adaptable),
    )


def _examples(module_names: list[tuple[str, ...]], count: int = 4) -> str:
    stride = max(1, len(module_names) // count)
    return "names are such as " + ", ".join(dotted for dotted, _ in module_names[::stride][:count])
