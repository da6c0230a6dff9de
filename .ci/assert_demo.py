"""Fail unless the demo's score shows that the LoRA learned its concept and left the rest alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

BEFORE_AT_MOST = 0.20
AFTER_AT_LEAST = 0.80
KEPT_WITHIN = 0.10


def failures(score: dict[str, float]) -> list[str]:
    """What is wrong with a score (shares in [0, 1]); empty if it is good. KeyError if a figure is missing."""
    before, after = score["before"], score["after"]
    kept_before, kept_after = score["kept_before"], score["kept_after"]
    found = []
    if not before <= BEFORE_AT_MOST:
        found.append(f"recognised without the LoRA: {before:.1%}, at most {BEFORE_AT_MOST:.0%} wanted")
    if not after >= AFTER_AT_LEAST:
        found.append(f"recognised with the LoRA: {after:.1%}, at least {AFTER_AT_LEAST:.0%} wanted")
    if not abs(kept_after - kept_before) <= KEPT_WITHIN:
        found.append(
            f"prompts without the trigger: {kept_before:.1%} -> {kept_after:.1%}, within 10 points wanted"
        )
    return found


def main(path: str) -> int:
    """Exit code 0 if the score in this JSON file is good enough."""
    score = json.loads(Path(path).read_text(encoding="utf-8"))
    found = failures(score)
    for line in found:
        print(f"demo: {line}", file=sys.stderr)
    if not found:
        print(f"demo: {score['before']:.1%} -> {score['after']:.1%}, other prompts kept: ok")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
