"""What a network is: the small trainable thing attached to a model whose own weights stay frozen."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Network(Protocol):
    """Trainable modules attached to components such as "unet" and "text_encoder".

    Its parameters are float32 whatever the dtype of the base.
    """

    multiplier: float
    """Scales what the network adds to the model: 1 as trained, 0 the base exactly."""

    @property
    def num_modules(self) -> int:
        """How many modules of the model it changes, over all components."""

    def parameters(self, component: str) -> list[nn.Parameter]:
        """The trainable parameters of one component, in the order of its modules; [] if it has none."""

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Component -> its parameters. A component without any is left out."""

    def enabled(self, on: bool = True) -> AbstractContextManager[None]:
        """A context in which the network acts (`on`) or is bypassed; the state before comes back after it."""

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the weights, float32 on the CPU, by name."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights by name. Raises ValueError unless names and shapes are exactly its own."""
