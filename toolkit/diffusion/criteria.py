"""The error of a prediction, element by element; who calls decides how to average."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Criterion = Callable[[Tensor, Tensor], Tensor]


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error (B, ...)."""
    return (prediction - target) ** 2


def mae(prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute error (B, ...)."""
    return (prediction - target).abs()


# By the name of train.loss_type.
CRITERIA: dict[str, Criterion] = {"mse": mse, "mae": mae}
