import pytest
import torch

from toolkit.errors import ConfigError
from toolkit.training.optimizers import OPTIMIZERS, make_optimizer
from toolkit.training.updates import GuardedOptimizer

RATES = {"sgd": 0.2, "adagrad": 0.5, "prodigy": 1.0}


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_converges_on_a_quadratic(name):
    parameter = torch.nn.Parameter(torch.full((4096,), 3.0))
    try:
        optimizer = make_optimizer(name, [{"params": [parameter]}], lr=RATES.get(name, 0.05))
    except ConfigError as error:
        assert "pip install" in str(error)
        return
    for _ in range(200):
        optimizer.zero_grad()
        (parameter**2).mean().backward()
        parameter.grad.mul_(4096)
        optimizer.step()
    assert parameter.detach().abs().max() < 0.5


def test_groups_keep_their_own_rate():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = make_optimizer("adamw", [{"params": [first]}, {"params": [second], "lr": 1e-5}], lr=1e-3)
    guarded = GuardedOptimizer(optimizer)
    for factor in (0.5, 0.1):
        guarded.set_lr(factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [1e-3 * factor, 1e-5 * factor]
        )


def test_unknown_names_and_keywords_are_named():
    with pytest.raises(ConfigError, match="did you mean 'adamw'"):
        make_optimizer("adamv", [{"params": [torch.nn.Parameter(torch.zeros(1))]}], lr=1e-3)
    with pytest.raises(ConfigError, match=r"optimizer_params.weigth_decay: adamw has no parameter"):
        parameter = torch.nn.Parameter(torch.zeros(1))
        make_optimizer("adamw", [{"params": [parameter]}], lr=1e-3, params={"weigth_decay": 0.1})


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adagrad", "adafactor"])
def test_a_non_finite_update_touches_neither_weights_nor_moments(name):
    def build():
        parameter = torch.nn.Parameter(torch.ones(3, 3))
        return parameter, GuardedOptimizer(make_optimizer(name, [{"params": [parameter]}], lr=0.1))

    (struck, guarded), (spared, reference) = build(), build()
    good = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    for gradient in (good, torch.full((3, 3), float("nan")), good):
        struck.grad = gradient.clone()
        guarded.step(torch.isfinite(gradient).all())
    for gradient in (good, good):
        spared.grad = gradient.clone()
        reference.step(torch.tensor(True))
    assert torch.equal(struck, spared)
    assert struck.grad is None
