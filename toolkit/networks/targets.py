"""Which modules of a model get an adapter: kohya's sets for Stable Diffusion, less what filters leave out."""

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

    `outside` names the classes that are added with `transformer_only: false`; `leaves`, if given, are the
    only last names taken.
    """

    inside: frozenset[str]
    outside: frozenset[str] = frozenset()
    leaves: frozenset[str] | None = None


# The UNet set is the one of kohya's LoRA; `outside` holds the containers its LoCon adds, that is
# time_emb_proj and conv_shortcut of the residual blocks. The time embedding belongs to neither: few
# tools train it. The text encoder set is complete on purpose: diffusers cannot tell the format of a
# file whose text encoder lacks out_proj, and then refuses all of it.
RULES = {
    "unet": TargetRule(
        inside=frozenset({"Transformer2DModel"}),
        outside=frozenset({"ResnetBlock2D", "Downsample2D", "Upsample2D"}),
    ),
    "text_encoder": TargetRule(
        inside=frozenset({"CLIPAttention", "CLIPMLP"}),
        leaves=frozenset({"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}),
    ),
}


def find_targets(
    components: dict[str, nn.Module],
    *,
    transformer_only: bool = True,
    only_if_contains: Sequence[str] = (),
    ignore_if_contains: Sequence[str] = (),
) -> dict[str, list[str]]:
    """Component -> module paths to adapt, in the order of the model; a component may end up with none.

    A filter is a substring of the dotted name (`unet.mid_block.attentions.0...`) or of kohya's name
    (`lora_unet_mid_block_attentions_0...`); `ignore_if_contains` wins. Raises ConfigError if nothing is
    left, or if a filter matches no module at all (most likely a typing mistake).
    """
    candidates = {
        component: list(_candidates(module, RULES[component], transformer_only=transformer_only))
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


def _candidates(root: nn.Module, rule: TargetRule, *, transformer_only: bool) -> Iterator[str]:
    containers = rule.inside if transformer_only else rule.inside | rule.outside

    def walk(module: nn.Module, path: str, inside: bool) -> Iterator[str]:
        for name, child in module.named_children():
            child_path = f"{path}.{name}" if path else name
            if inside and _is_adaptable(child) and (rule.leaves is None or name in rule.leaves):
                yield child_path
            else:
                yield from walk(child, child_path, inside or type(child).__name__ in containers)

    return walk(root, "", type(root).__name__ in containers)


def _is_adaptable(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1)
    return isinstance(module, nn.Linear)


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
