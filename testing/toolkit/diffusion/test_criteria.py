"""Criteria against their closed forms and torch's own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from toolkit.diffusion.criteria import PLAIN, ROBUST, THRESHOLDS, make_criterion
from toolkit.diffusion.objectives import EpsilonPrediction, FlowMatching

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
TABLE = EpsilonPrediction(SCHEDULER.alphas_cumprod)
FLOW = FlowMatching()
T = torch.tensor([0.001, 0.501, 1.0])


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 5, 6, generator=generator), torch.randn(3, 4, 5, 6, generator=generator)


@pytest.mark.parametrize(("name", "reference"), [("mse", F.mse_loss), ("mae", F.l1_loss)])
def test_plain_criteria_equal_torch(name, reference):
    prediction, target = pair()
    expected = reference(prediction, target, reduction="none")
    torch.testing.assert_close(PLAIN[name](prediction, target, TABLE, T), expected)


@pytest.mark.parametrize("c", [0.01, 0.1, 1.0])
def test_robust_criteria_equal_their_closed_forms(c):
    prediction, target = (each.double() for each in pair())
    root = torch.sqrt((prediction - target) ** 2 + c**2) - c
    forms = {"huber": 2 * c * root, "smooth_l1": 2 * root, "pseudo_huber": root}
    assert forms.keys() == ROBUST.keys()
    for name, expected in forms.items():
        found = make_criterion(name, c=c, schedule="constant")(prediction, target, TABLE, T.double())
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_huber_is_mse_for_small_and_linear_for_large_differences():
    zero = torch.zeros(1, 1, 1, 1)
    huber = make_criterion("huber", c=0.1, schedule="constant")
    small, large = (huber(torch.full_like(zero, d), zero, TABLE, T[:1]).item() for d in (1e-4, 1e3))
    assert small == pytest.approx(1e-8, rel=1e-3)  # float32 without cancellation
    assert large == pytest.approx(2 * 0.1 * 1e3, rel=1e-3)


def test_schedules_of_the_threshold():
    """arXiv:2403.16728: exp(ln(c) i / T) and (1 - c) / (1 + sqrt((1 - abar) / abar))^2 + c."""
    c, steps = 0.1, torch.tensor([0, 500, 999])
    power = SCHEDULER.alphas_cumprod[steps]
    expected = {
        "constant": torch.full((3,), c),
        "exponential": torch.exp(steps * math.log(c) / 1000),
        "snr": (1 - c) / (1 + ((1 - power) / power).sqrt()) ** 2 + c,
    }
    assert expected.keys() == THRESHOLDS.keys()
    for name, values in expected.items():
        torch.testing.assert_close(THRESHOLDS[name](c)(TABLE, T), values, rtol=1e-4, atol=1e-6)


def test_schedules_of_flow_matching():
    t = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(THRESHOLDS["exponential"](0.1)(FLOW, t), 0.1**t)
    torch.testing.assert_close(THRESHOLDS["snr"](0.1)(FLOW, t), 0.9 * (1 - t) ** 2 + 0.1)


@pytest.mark.parametrize("name", ROBUST)
def test_a_criterion_is_differentiable_where_nothing_is_off(name):
    prediction = torch.zeros(2, 1, 2, 2, requires_grad=True)
    make_criterion(name)(prediction, torch.zeros_like(prediction), FLOW, torch.ones(2)).sum().backward()
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


def test_usual_values_stand_in_for_what_is_left_out():
    prediction, target = pair()
    for name, (_, c, schedule) in ROBUST.items():
        given = make_criterion(name, c=c, schedule=schedule)(prediction, target, TABLE, T)
        assert torch.equal(make_criterion(name)(prediction, target, TABLE, T), given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "hubber"}, "unknown criterion"),
        ({"name": "huber", "c": 0.0}, "c must be"),
        ({"name": "huber", "c": 1.5}, "c must be"),
        ({"name": "huber", "schedule": "linear"}, "unknown schedule"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_criterion(**arguments)


def haar(difference: torch.Tensor) -> dict[str, torch.Tensor]:
    """The four bands of a Haar transform, written out block by block."""
    a, b = difference[..., ::2, ::2], difference[..., ::2, 1::2]
    c, d = difference[..., 1::2, ::2], difference[..., 1::2, 1::2]
    return {"ll": (a + b + c + d) / 2, "lh": (a - b + c - d) / 2, "hl": (a + b - c - d) / 2,
            "hh": (a - b - c + d) / 2}  # fmt: skip


def test_wavelet_counts_details_more():
    prediction, target = (torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    objective, t = FLOW, torch.full((2,), 0.5)
    bands = haar(prediction - target)
    coarse = bands.pop("ll").square().sum((1, 2, 3))
    details = sum(band.square().sum((1, 2, 3)) for band in bands.values())
    for detail in (0.0, 1.0, 3.0):
        errors = make_criterion("wavelet", detail=detail)(prediction, target, objective, t)
        assert errors.shape == prediction.shape
        torch.testing.assert_close(errors.sum((1, 2, 3)), coarse + detail * details)
    usual = make_criterion("wavelet")(prediction, target, objective, t)
    torch.testing.assert_close(usual.sum((1, 2, 3)), coarse + 2 * details)


def test_an_orthonormal_wavelet_loss_with_equal_weights_is_mse():
    """Parseval: so counting all bands alike, as is done elsewhere, would change nothing."""
    prediction, target = (torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    objective, t = FLOW, torch.full((2,), 0.5)
    errors = make_criterion("wavelet", detail=1.0)(prediction, target, objective, t)
    torch.testing.assert_close(errors.sum(), ((prediction - target) ** 2).sum())


def test_wavelet_takes_odd_sizes_and_frames():
    objective, t = FLOW, torch.full((2,), 0.5)
    for shape in ((2, 3, 5, 7), (2, 3, 4, 5, 7), (2, 1, 1, 1)):
        prediction = torch.ones(shape)
        errors = make_criterion("wavelet", detail=5.0)(prediction, torch.zeros(shape), objective, t)
        torch.testing.assert_close(errors, torch.ones(shape))  # flat: no detail, also at the edges
