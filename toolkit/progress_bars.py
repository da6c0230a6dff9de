"""Progress bars of the tools: one for each thing that is counted, closed when it is through."""

from __future__ import annotations

from tqdm import tqdm


class Bars:
    """Call it with (what is counted, done, total). leave: whether a full bar stays to be seen.

    As a context it closes what was not finished, so that an error's line begins below the bar.
    """

    def __init__(self, unit: str, *, leave: bool = True) -> None:
        self._unit, self._leave = unit, leave
        self._open: dict[str, tqdm] = {}

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *raised: object) -> None:
        for bar in self._open.values():
            bar.close()
        self._open.clear()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far it is."""
        bar = self._open.get(what)
        if bar is None:
            bar = self._open[what] = tqdm(total=total, desc=what, unit=self._unit, leave=self._leave)
        bar.update(done - bar.n)
        if done == total:
            bar.close()
            del self._open[what]
