"""Losses gathered by noise level, for rows of metrics.jsonl. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

NUM_LEVELS = 10  # equal parts of [0, 1]


def by_level(levels: Iterable[float], losses: Iterable[float]) -> dict[str, Any]:
    """loss_by_t: the mean loss in each tenth of t (None where there is none), t_counts: of how many.

    levels in [0, 1]. A loss that is not finite counts nowhere.

    >>> by_level([0.05, 0.07, 1.0], [1.0, 3.0, 0.5])["t_counts"]
    [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    """
    sums, counts = [0.0] * NUM_LEVELS, [0] * NUM_LEVELS
    for level, loss in zip(levels, losses, strict=True):
        if math.isfinite(loss):
            place = min(NUM_LEVELS - 1, int(level * NUM_LEVELS))
            sums[place] += loss
            counts[place] += 1
    means = [round(total / count, 7) if count else None for total, count in zip(sums, counts, strict=True)]
    return {"loss_by_t": means, "t_counts": counts}


def mean_by_level(rows: Sequence[dict[str, Any]]) -> tuple[list[float | None], list[int]]:
    """The mean loss of each tenth of t over many rows, and how many losses that are."""
    sums, counts = [0.0] * NUM_LEVELS, [0] * NUM_LEVELS
    for row in rows:
        pairs = zip(row.get("loss_by_t") or [], row.get("t_counts") or [], strict=False)
        for place, (mean, count) in enumerate(pairs):
            if mean is not None and place < NUM_LEVELS:
                sums[place] += mean * count
                counts[place] += count
    return [total / count if count else None for total, count in zip(sums, counts, strict=True)], counts
