"""The loop on a linear model, where every number can be worked out by hand."""

import random
from pathlib import Path

import numpy
import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.data.items import Batch, Bucket, MediaItem, Placement
from toolkit.diffusion.diffusion_loss import ItemLosses
from toolkit.errors import RunError
from toolkit.training.ema import ExponentialMovingAverage
from toolkit.training.lr_schedules import make_schedule
from toolkit.training.optimizers import make_optimizer
from toolkit.training.out_of_memory import BatchOutOfMemory, UpdateOutOfMemory
from toolkit.training.trainer import Trainer, TrainerSettings, TrainingState


def item(name: str) -> MediaItem:
    return MediaItem(name, Path(f"{name}.png"), name, "", "set", Bucket(8, 8), Placement(8, 8, 0, 0))


def batch(values: list[float], weights: list[float] | None = None) -> Batch:
    """Items whose loss is (w * value - 1)^2; the values travel in `latents`."""
    return Batch(
        items=tuple(item(f"item{value}") for value in values),
        captions=tuple("" for _ in values),
        weights=torch.tensor(weights or [1.0] * len(values)),
        latents=torch.tensor(values),
    )


class Run:
    """A trainer of one weight, with the losses it reported."""

    def __init__(self, batches, *, steps=1, optimizer="sgd", lr=0.1, accelerator=None, **settings):
        self.weight = torch.nn.Parameter(torch.zeros(()))
        parameters = {"w": self.weight}
        params = {"weight_decay": 0.0} if optimizer == "adamw" else None
        self.reports = []
        self.trainer = Trainer(
            TrainerSettings(steps=steps, max_grad_norm=settings.pop("max_grad_norm", None), **settings),
            losses=self.losses,
            parameters=parameters,
            optimizer=make_optimizer(optimizer, [{"params": [self.weight]}], lr=lr, params=params),
            schedule=make_schedule("constant"),
            batches=iter(batches),
            accelerator=accelerator or Accelerator(cpu=True),
            ema=ExponentialMovingAverage(parameters, 0.9),
            state=TrainingState(),
        )

    def losses(self, part: Batch) -> ItemLosses:
        errors = (self.weight * part.latents - 1.0) ** 2
        return ItemLosses(sums=errors, counts=torch.ones_like(errors))

    def after_step(self, report) -> bool:
        self.reports.append(report)
        return False

    def run(self):
        self.finished = self.trainer.run(self)
        return self


def test_unequal_micro_batches_accumulate_to_the_gradient_of_all_items():
    whole = Run([batch([1, 2, 3, 4, 5, 6])]).run()
    parts = Run([batch([1, 2, 3, 4]), batch([5, 6])], accumulation=2).run()
    assert parts.weight.item() == pytest.approx(whole.weight.item(), rel=1e-6)
    # by hand: gradient at 0 is mean(-2 x) = -7, so the weight moves by 0.7
    assert whole.weight.item() == pytest.approx(0.7)
    assert float(parts.reports[0].loss) == pytest.approx(1.0)
    assert len(parts.reports[0].per_item) == 6


def test_item_weights_scale_their_items_and_n_stays_the_count():
    run = Run([batch([1.0, 1.0], weights=[1.0, 0.5])]).run()
    assert float(run.reports[0].loss) == pytest.approx(0.75)
    assert run.weight.item() == pytest.approx(0.1 * (2 * 1.0 + 2 * 0.5) / 2)
    assert run.reports[0].per_item.tolist() == [1.0, 1.0]


def test_the_gradient_is_clipped_and_its_norm_before_is_reported():
    run = Run([batch([10.0])], max_grad_norm=1.0).run()
    assert float(run.reports[0].grad_norm) == pytest.approx(20.0)
    assert run.weight.item() == pytest.approx(0.1, rel=1e-4)


def test_a_non_finite_loss_stops_the_run_names_its_files_and_spares_the_weights():
    batches = [batch([1.0]), batch([float("nan"), 2.0]), batch([1.0]), batch([1.0])]
    run = Run(batches, steps=4, optimizer="adamw")
    with pytest.raises(RunError, match=r"step 2: the loss is not finite .*itemnan.png, item2.0.png"):
        run.run()
    assert torch.isfinite(run.weight)
    assert run.trainer.state.step <= 3, "the flag must be read at most one step later"


def test_skipping_goes_on_as_if_the_step_had_not_been():
    nan = float("nan")
    struck = Run(
        [batch([1.0]), batch([nan]), batch([2.0])], steps=3, optimizer="adamw", skip_non_finite=True
    ).run()
    spared = Run([batch([1.0]), batch([2.0])], steps=2, optimizer="adamw").run()
    assert torch.equal(struck.weight, spared.weight)
    assert struck.trainer.state.skipped == 1


def test_skipping_ends_where_nothing_is_learned_any_more():
    run = Run([batch([float("nan")]) for _ in range(40)], steps=40, optimizer="adamw", skip_non_finite=True)
    with pytest.raises(RunError, match="step 20: the loss is not finite"):
        run.run()


class Waits(TorchDispatchMode):
    """Records every operation that makes the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default or "nonzero" in str(function):
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_step_that_does_not_log_never_waits_for_the_device():
    run = Run([batch([1.0, 2.0]) for _ in range(6)], steps=6, optimizer="adamw", max_grad_norm=1.0)
    with Waits() as waits:
        run.run()
    assert waits.seen == []
    with Waits() as waits:
        float(run.reports[0].loss)
    assert waits.seen, "the detector must see a host read"


def test_the_watcher_can_end_the_run():
    class Stopper(Run):
        def after_step(self, report):
            super().after_step(report)
            return report.step == 2

    run = Stopper([batch([1.0]) for _ in range(9)], steps=9).run()
    assert run.finished is False and run.trainer.state.step == 2 and run.trainer.state.position == 2


def scaling_accelerator(scale: float) -> Accelerator:
    """accelerate as it is for fp16 on a GPU: with a gradient scaler."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return accelerator


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_gradient_scaler_changes_nothing_but_the_range(optimizer):
    batches = [batch([10.0]), batch([3.0])]
    plain = Run(batches, steps=2, optimizer=optimizer, max_grad_norm=1.0).run()
    scaled = Run(
        batches, steps=2, optimizer=optimizer, max_grad_norm=1.0, accelerator=scaling_accelerator(2.0**10)
    ).run()
    assert [float(r.grad_norm) for r in scaled.reports] == pytest.approx(
        [float(r.grad_norm) for r in plain.reports]
    )
    assert scaled.weight.item() == pytest.approx(plain.weight.item(), rel=1e-6)


def test_an_overflow_under_a_scaler_lowers_the_scale_and_spares_the_weights():
    accelerator = scaling_accelerator(2.0**127)
    run = Run([batch([10.0])], optimizer="adamw", accelerator=accelerator).run()
    assert run.weight.item() == 0.0 and accelerator.scaler.get_scale() == 2.0**126


def test_batches_that_are_left_out_are_passed_over_wherever_they_lie():
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    run = Run([batch([value]) for value in values], steps=2, accumulation=2)
    run.trainer.left_out = {0, 2}
    run.run()
    files = [report.files for report in run.reports]
    assert files == [("item2.0.png", "item4.0.png"), ("item5.0.png", "item6.0.png")]
    assert [report.position for report in run.reports] == [4, 6] and run.trainer.state.position == 6


class Failing(Run):
    """Runs out of memory where a value is 13."""

    def losses(self, part: Batch) -> ItemLosses:
        if 13.0 in part.latents.tolist():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().losses(part)


def test_a_batch_without_memory_is_named_and_the_run_can_go_on_as_if_it_had_not_come():
    run = Failing(
        [batch([v]) for v in (1.0, 2.0, 3.0, 13.0, 4.0)], steps=2, accumulation=2, optimizer="adamw"
    )
    with pytest.raises(BatchOutOfMemory, match=r"step 2: .*item3.0.png, item13.0.png") as caught:
        run.run()
    assert (caught.value.step, caught.value.first, caught.value.stop) == (2, 2, 4)
    assert (run.trainer.state.step, run.trainer.state.position) == (1, 2)
    run.trainer.updates.optimizer.zero_grad()
    run.trainer.batches = iter([batch([4.0]), batch([5.0])])
    run.run()
    spared = Run([batch([v]) for v in (1.0, 2.0, 4.0, 5.0)], steps=2, accumulation=2, optimizer="adamw").run()
    assert torch.equal(run.weight, spared.weight)


def test_no_memory_amid_an_update_is_another_error(monkeypatch):
    run = Run([batch([1.0])], optimizer="adamw")

    def step(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run.trainer.updates, "step", step)
    with pytest.raises(UpdateOutOfMemory, match="step 1: not enough memory for the optimizer"):
        run.run()


def test_a_refused_step_is_judged_even_if_the_next_one_finds_no_memory():
    run = Failing([batch([float("nan")]), batch([13.0]), batch([1.0])], steps=2, optimizer="adamw")
    with pytest.raises(BatchOutOfMemory):
        run.run()
    with pytest.raises(RunError, match="step 1: the loss is not finite"):
        run.run()


def test_what_draws_from_the_global_generators_draws_the_same_at_a_step_whatever_came_before():
    class Drawing(Run):
        def losses(self, part: Batch) -> ItemLosses:
            self.draws.append((random.random(), numpy.random.rand(), torch.rand(()).item()))
            return super().losses(part)

    def draws(state: TrainingState) -> list[tuple[float, float, float]]:
        run = Drawing([batch([1.0]) for _ in range(6)], steps=3, accumulation=2)
        run.draws, run.trainer.state = [], state
        random.random(), numpy.random.rand(), torch.rand(())
        run.run()
        return run.draws

    straight = draws(TrainingState())
    assert len(set(straight)) == 6
    assert draws(TrainingState(step=1, position=2)) == straight[2:]


def test_refusals_in_a_row_are_counted_over_a_resume():
    nan = [batch([float("nan")]) for _ in range(40)]
    run = Run(nan, steps=40, optimizer="adamw", skip_non_finite=True)
    run.trainer.state.refused_in_a_row = 15
    with pytest.raises(RunError, match="step 5: the loss is not finite"):
        run.run()
