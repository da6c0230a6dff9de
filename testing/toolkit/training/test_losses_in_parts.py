"""A loss that comes in parts: added up exactly, one graph at a time, each in its own context."""

from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.utils.checkpoint import checkpoint

from toolkit.data.items import Batch, Bucket, MediaItem, Placement
from toolkit.diffusion.diffusion_loss import ItemLosses
from toolkit.training.lr_schedules import make_schedule
from toolkit.training.optimizers import make_optimizer
from toolkit.training.trainer import Losses, Trainer, TrainerSettings

VALUES = [1.0, 2.0]


class Scaled:
    """A weight whose effect has a strength, as a network's has; its forward pass is recomputed backward."""

    def __init__(self):
        self.weight = torch.nn.Parameter(torch.tensor(0.5))
        self.strength = 1.0
        self.alive = 0

    def predict(self, values: torch.Tensor) -> torch.Tensor:
        return checkpoint(lambda x: torch.tanh(self.strength * self.weight * x), values, use_reentrant=False)

    def loss(self, values: torch.Tensor, strength: float) -> torch.Tensor:
        return (torch.tanh(strength * self.weight * values) - strength) ** 2

    def in_parts(self, batch: Batch) -> Generator[ItemLosses, None, None]:
        for strength in (1.0, -2.0):
            self.strength = strength
            self.alive += 1
            assert self.alive == 1, "the part before is still there"
            try:
                errors = (self.predict(batch.latents) - strength) ** 2
                yield ItemLosses(errors, torch.ones_like(errors))
            finally:
                self.strength = 1.0
                self.alive -= 1


def step(model: Scaled, losses: Losses) -> tuple[Trainer, object]:
    items = tuple(
        MediaItem(f"{v}", Path(f"{v}.png"), f"{v}", "", "set", Bucket(8, 8), Placement(8, 8, 0, 0))
        for v in VALUES
    )
    batch = Batch(items, ("", ""), torch.tensor([1.0, 0.5]), latents=torch.tensor(VALUES))
    trainer = Trainer(
        TrainerSettings(steps=1, max_grad_norm=None),
        losses=losses,
        parameters={"w": model.weight},
        optimizer=make_optimizer("sgd", [{"params": [model.weight]}], lr=0.1, params=None),
        schedule=make_schedule("constant"),
        batches=iter([batch]),
        accelerator=Accelerator(cpu=True),
    )
    return trainer, trainer.train_step()


def test_parts_add_up_to_the_whole_also_where_activations_are_recomputed():
    model, values = Scaled(), torch.tensor(VALUES)
    expected = model.loss(values, 1.0) + model.loss(values, -2.0)
    share = (expected * torch.tensor([1.0, 0.5])).sum() / 2
    (gradient,) = torch.autograd.grad(share, model.weight)
    _, report = step(model, model.in_parts)
    assert torch.allclose(report.per_item, expected.detach())
    assert float(report.loss) == pytest.approx(share.item())
    # With a strength put back before the backward pass, the recomputed activations would be other ones.
    assert float(report.grad_norm) == pytest.approx(abs(gradient.item()), rel=1e-5)
    assert model.weight.item() == pytest.approx(0.5 - 0.1 * gradient.item(), rel=1e-5)
    assert (model.strength, model.alive) == (1.0, 0)


def test_a_context_is_left_when_a_part_fails():
    model = Scaled()

    def failing(batch: Batch) -> Generator[ItemLosses, None, None]:
        for part in model.in_parts(batch):
            yield ItemLosses(part.sums.detach(), part.counts)  # has no gradient: the backward pass refuses it

    with pytest.raises(RuntimeError, match="does not require grad"):
        step(model, failing)
    assert model.strength == 1.0
