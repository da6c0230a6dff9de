"""Settings of a network that are fine alone and wrong together, or have no effect. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.config_modules.base import Location
from toolkit.config_modules.process import DiffusionProcess
from toolkit.models.catalogue import ARCHITECTURES

Finding = tuple[Location, str, str, str | None]


def check_network(process: DiffusionProcess) -> Iterator[Finding]:
    """Everything wrong between the settings of a network, and between them and the model."""
    network = process.network
    if network is None:
        return
    ratio = network.network_kwargs.loraplus_lr_ratio
    if ratio is not None and network.type in ("loha", "lokr"):
        message = f"LoRA+ is about `up` of a LoRA, which {network.type} has not"
        where = ("network", "network_kwargs", "loraplus_lr_ratio")
        yield where, "config.conflict", message, "leave it out"
    entry = ARCHITECTURES.get(process.model.arch)
    if network.conv is not None and entry is not None and entry.patch is not None:
        message = f"{entry.title} has no convolutions that a network adapts"
        yield ("network", "conv"), "config.conflict", message, "leave it out"


def unread_network_settings(process: DiffusionProcess) -> dict[str, str]:
    """Keys of `network` that have no effect beside the others -> why."""
    network = process.network
    if network is None:
        return {}
    unread: dict[str, str] = {}
    if network.type != "lokr":
        unread |= dict.fromkeys(("lokr_factor", "lokr_full_rank"), "only counts with type: lokr")
    elif network.lokr_full_rank:
        unread |= dict.fromkeys(("linear", "linear_alpha"), "does not count with lokr_full_rank")
    if network.conv_rank is None:
        unread["conv_alpha"] = "only counts with conv"
    return unread
