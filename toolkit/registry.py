"""Tables of names: data that can be listed without importing what it names. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from toolkit.errors import ConfigError, Problem, did_you_mean


class Registry:
    """Maps a name to "module:attribute", imported on use.

    >>> Registry("optimizer", {"adamw": "torch.optim:AdamW"}).check("adamw")
    'adamw'
    """

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._table = dict(table)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def names(self) -> list[str]:
        """Every known name, in the order of the table."""
        return list(self._table)

    def check(self, name: str) -> str:
        """`name` itself. Raises ConfigError with a suggestion if it is unknown."""
        if name not in self._table:
            raise ConfigError(Problem("config.unknown_name", self.explain(name)))
        return name

    def explain(self, name: str) -> str:
        """The sentence that tells an unknown name from the known ones."""
        guess = did_you_mean(name, self._table)
        hint = f"did you mean '{guess}'?" if guess else f"known: {', '.join(self._table)}"
        return f"unknown {self.kind} '{name}'; {hint}"

    def resolve(self, name: str) -> Any:
        """The object that `name` stands for, imported now. Raises ConfigError if the name is unknown."""
        module, _, attribute = self._table[self.check(name)].partition(":")
        return getattr(import_module(module), attribute)
