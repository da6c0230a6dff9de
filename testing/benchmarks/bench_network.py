"""What adapters cost: ours against those of peft and lycoris, on a linear layer and its backward pass.

    python -m testing.benchmarks.bench_network

Each variant is one Linear with an adapter, its input demanding a gradient as inside a model; the baseline
is the layer alone, frozen. Factors are of CPU time. LoKr of peft and lycoris builds the whole Kronecker
product; ours multiplies by its factors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from peft import LoKrConfig, inject_adapter_in_model
from torch import Tensor, nn

from testing.benchmarks.measuring import AGAIN, BARE, make_row, report, take_turns
from toolkit.networks.adapters import Kind, Size, attach
from toolkit.networks.lora import KINDS
from toolkit.networks.lycoris import LOHA, lokr_kind

RANK = 16
LOKR = lokr_kind(-1)


class Model(nn.Module):
    """A model of a single attention projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.to_q = nn.Linear(width, width)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_q(x)


def with_peft(width: int) -> nn.Module:
    """LoKr as peft runs it."""
    config = LoKrConfig(r=RANK, alpha=RANK, decompose_factor=-1, target_modules=["to_q"])
    return inject_adapter_in_model(config, Model(width))


def with_lycoris(width: int) -> nn.Module:
    """LoKr as lycoris-lora runs it, in the layer's place."""
    from lycoris.modules.lokr import LokrModule

    model = Model(width)
    module = LokrModule("to_q", model.to_q, lora_dim=RANK, alpha=RANK, factor=-1)
    module.apply_to()
    model.lycoris = module
    return model


def with_ours(width: int, kind: Kind) -> nn.Module:
    """A network of ours."""
    model = Model(width)
    attach(kind, {"unet": model}, size=Size(RANK, float(RANK)), seed=0, dropout=0.0, paths={"unet": ["to_q"]})
    return model


def stepper(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward of one batch."""

    def step() -> None:
        y = model(x)
        y.backward(torch.ones_like(y))
        x.grad = None
        model.zero_grad(set_to_none=True)

    return step


def same_lokr(width: int) -> float:
    """The largest difference between ours and peft's LoKr of equal weights, relative to what they add."""
    ours, theirs = with_ours(width, LOKR), with_peft(width)
    mine, yours = ours.to_q, theirs.to_q
    with torch.no_grad():
        for name, parameter in mine.named_parameters():
            if "lokr" in name:
                parameter.normal_(std=0.1)
                yours.get_parameter(name).copy_(parameter)
        x = torch.randn(8, width)
        base = mine.base_layer(x)
        return float((ours(x) - theirs(x)).abs().max() / (ours(x) - base).abs().max())


def main(argv: list[str] | None = None) -> int:
    """Measure and print; exit code 1 if ours is not the same as peft's or a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.width, arguments.tokens, arguments.rounds = 64, 16, 1
    width = arguments.width
    x = torch.randn(arguments.tokens, width).requires_grad_()
    models = {
        "LoRA, ours": with_ours(width, KINDS["lora"]),
        "LoHa, ours": with_ours(width, LOHA),
        "LoKr, ours": with_ours(width, LOKR),
        "LoKr, ours again": with_ours(width, LOKR),
        "LoKr, peft": with_peft(width),
        "LoKr, lycoris": with_lycoris(width),
        BARE: Model(width),
        AGAIN: Model(width),
    }
    times = take_turns({name: stepper(model, x) for name, model in models.items()}, rounds=arguments.rounds)
    bare, ours = (times[BARE], times[AGAIN]), (times["LoKr, ours"], times["LoKr, ours again"])
    rows = [
        make_row(f"{name} / frozen layer", times[name], *bare)
        for name in models
        if name not in (BARE, AGAIN, "LoKr, ours again")
    ]
    rows += [
        make_row(f"LoKr of {other} / ours", times[f"LoKr, {other}"], *ours) for other in ("peft", "lycoris")
    ]
    difference = same_lokr(width)
    code = report(rows, lokr_difference=difference)
    return max(code if not arguments.quick else 0, int(difference > 1e-4))


if __name__ == "__main__":
    sys.exit(main())
