"""What must not change between two attempts of a run, as far as its config tells. Imports no torch."""

from __future__ import annotations

from typing import Any

from toolkit.config_modules.network import NetworkConfig
from toolkit.config_modules.process import DiffusionProcess, TrainProcess, VaeProcess
from toolkit.networks.catalogue import FULL_RANK

# Types of networks in the words that checkpoints use: LoCon is LoRA with another choice of layers.
_TITLES = {"lora": "LoRA", "locon": "LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}


def known_nature(section: DiffusionProcess | VaeProcess) -> dict[str, Any]:
    """The nature of a training before any model is loaded; see toolkit/runs/lineage.py."""
    nature: dict[str, Any] = {"optimizer": section.train.optimizer}
    if isinstance(section, VaeProcess):
        return nature | {"trained part": "autoencoder"}
    network = section.network
    embedding = section.embedding if isinstance(section, TrainProcess) else None
    nature |= {
        "adapter": None if network is None else _adapter(network),
        "embedding": None if embedding is None else f"{embedding.tokens} vectors",
    }
    if network is not None:
        nature |= {"network.conv": network.conv_rank}
        if not _full_rank(network):
            nature |= {"network.linear": network.rank}
    if network is not None or embedding is None:
        parts = ("train_unet", "train_text_encoder")
        nature |= {f"train.{part}": getattr(section.train, part) for part in parts}
    return nature


def _adapter(network: NetworkConfig) -> str:
    alpha = FULL_RANK if _full_rank(network) else network.alpha
    return f"{_TITLES[network.type]} with alpha {alpha:g}"


def _full_rank(network: NetworkConfig) -> bool:
    return network.type == "lokr" and network.lokr_full_rank
