"""Who is told how a measurement or a captioning goes, and may end it early. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Watcher:
    """Who is told: say gets lines, progress (what, done, total); should_stop is asked between images."""

    say: Callable[[str], None] = lambda text: None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    should_stop: Callable[[], bool] = lambda: False
