import pytest
import torch
from diffusers.training_utils import EMAModel

from toolkit.training.ema import ExponentialMovingAverage


def walk(parameters, steps, update):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        update()


@pytest.mark.parametrize("steps", [1, 2, 11, 60])
def test_equals_diffusers_from_its_second_update_on(steps):
    parameters = [torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.ones(5))]
    reference_parameters = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    reference = EMAModel(reference_parameters, decay=0.9)
    # diffusers copies the weights at its first update; ours averages from the first, so it starts one later.
    reference.optimization_step = 1
    ema = ExponentialMovingAverage({str(i): p for i, p in enumerate(parameters)}, 0.9)
    walk(parameters, steps, ema.update)
    walk(reference_parameters, steps, lambda: reference.step(reference_parameters))
    for ours, theirs in zip(ema.shadow.values(), reference.shadow_params, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_applied_shows_the_average_and_restores_the_weights_bit_for_bit():
    parameter = torch.nn.Parameter(torch.randn(7, dtype=torch.float32))
    ema = ExponentialMovingAverage({"w": parameter}, 0.99)
    walk([parameter], 3, ema.update)
    before = parameter.detach().clone()
    with ema.applied():
        assert torch.equal(parameter.detach(), ema.shadow["w"])
        assert not torch.equal(parameter.detach(), before)
    assert torch.equal(parameter.detach(), before)


def test_weights_come_back_after_an_error_inside():
    parameter = torch.nn.Parameter(torch.zeros(2))
    ema = ExponentialMovingAverage({"w": parameter}, 0.5)
    ema.shadow["w"].fill_(3.0)
    with pytest.raises(RuntimeError, match="boom"), ema.applied():
        raise RuntimeError("boom")
    assert parameter.detach().tolist() == [0.0, 0.0]


def test_a_loaded_average_goes_on_as_the_one_that_was_saved():
    parameter = torch.nn.Parameter(torch.zeros(4))
    ema = ExponentialMovingAverage({"w": parameter}, 0.9)
    walk([parameter], 5, ema.update)
    twin = ExponentialMovingAverage({"w": parameter}, 0.9)
    twin.load({"w": ema.shadow["w"].clone()}, ema.num_updates)
    walk([parameter], 1, lambda: (ema.update(), twin.update()))
    assert torch.equal(ema.shadow["w"], twin.shadow["w"])


def test_low_precision_weights_are_averaged_in_float32():
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    ema = ExponentialMovingAverage({"w": parameter}, 0.999)
    assert ema.shadow["w"].dtype == torch.float32


def test_a_decay_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"1.5 must be in \[0, 1\)"):
        ExponentialMovingAverage({}, 1.5)


def test_a_refused_update_leaves_the_average_as_it_is():
    parameter = torch.nn.Parameter(torch.zeros(4))
    ema = ExponentialMovingAverage({"w": parameter}, 0.9)
    twin = ExponentialMovingAverage({"w": parameter}, 0.9)
    walk([parameter], 3, lambda: (ema.update(torch.tensor(True)), twin.update()))
    assert torch.equal(ema.shadow["w"], twin.shadow["w"])
    before = ema.shadow["w"].clone()
    walk([parameter], 1, lambda: ema.update(torch.tensor(False)))
    assert torch.equal(ema.shadow["w"], before)


def test_feedback_draws_the_weights_towards_their_average():
    """ai-toolkit's, with the average as it was: w + 10 (1 - d) (shadow - w), at most onto the shadow."""
    for decay, drawn in ((0.999, 0.01), (0.5, 1.0)):
        weight = torch.nn.Parameter(torch.zeros(3))
        ema = ExponentialMovingAverage({"w": weight}, decay, feedback=True)
        ema.num_updates = 10**6  # past the warm-up
        weight.data.fill_(1.0)
        ema.update(torch.tensor(True))
        torch.testing.assert_close(ema.shadow["w"], torch.full((3,), 1 - decay))
        torch.testing.assert_close(weight.detach(), torch.full((3,), 1 - drawn))


def test_the_multiplier_scales_the_weights_after_each_update_that_was_applied():
    weight = torch.nn.Parameter(torch.ones(3))
    ema = ExponentialMovingAverage({"w": weight}, 0.9, multiplier=0.5)
    ema.update()
    ema.update(torch.tensor(True))
    ema.update(torch.tensor(False))
    assert weight.tolist() == [0.25] * 3
