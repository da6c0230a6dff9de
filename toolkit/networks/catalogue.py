"""The table of network types. Torch-free: it can be listed without importing what it names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from toolkit.errors import ConfigError, Problem
from toolkit.registry import Registry

NETWORKS = Registry(
    "network type",
    {
        "lora": "toolkit.networks.lora:attach_lora",
        "locon": "toolkit.networks.lora:attach_lora",
        "dora": "toolkit.networks.lora:attach_dora",
        "loha": "toolkit.networks.lycoris:attach_loha",
        "lokr": "toolkit.networks.lycoris:attach_lokr",
    },
)

FULL_RANK = 2**31 - 1  # larger than any matrix: LoKr then keeps its second factor whole

# Types that configs of this format may name, and that cannot be trained yet.
NOT_YET = ("lorm", "fullrank", "lierla")


def explain_network(name: str) -> str | None:
    """Why `name` cannot be used as `network.type`, or None if it can."""
    if name in NETWORKS:
        return None
    if name in NOT_YET:
        return f"network type '{name}' is not supported yet; supported: {', '.join(NETWORKS)}"
    return NETWORKS.explain(name)


def resolve_network(name: str) -> Callable[..., Any]:
    """The function that attaches a network of this type. Raises ConfigError if there is none."""
    reason = explain_network(name)
    if reason is not None:
        raise ConfigError(Problem("network.unknown_type", reason, key="network.type"))
    attach: Callable[..., Any] = NETWORKS.resolve(name)
    return attach
