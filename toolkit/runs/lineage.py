"""Whether a config can go on from the checkpoints in a folder, said in words of the config. Torch-free.

A nature says what must not change between two attempts, by plain names: `jobs/nature.py` has the part that
a config tells, the rest is known once the model is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import Problem, RunError
from toolkit.networks.catalogue import FULL_RANK
from toolkit.runs.checkpoints import list_checkpoints

Nature = Mapping[str, Any]
REMEDY = "use another name for this run, or move its checkpoints away to start anew"
_SUBJECTS = ("trained part", "adapter", "embedding")  # which of them there are says what is trained
_FULL = f"{FULL_RANK:g}"


class ForeignCheckpointError(RunError):
    """The checkpoint in the folder is another training's; the run before stays as it was."""


def foreign(folder: Path, what: str) -> Problem:
    """The line for a checkpoint of another training."""
    return Problem("run.foreign_checkpoint", what, file=str(folder), remedy=REMEDY)


def foreign_checkpoint(checkpoints: Path, now: Nature) -> list[Problem]:
    """Why the newest checkpoint below `checkpoints` cannot be gone on from by a training of nature `now`.

    Reads its description only. Of what `now` does not tell nothing is said; nor of damaged checkpoints.
    """
    for _, folder in reversed(list_checkpoints(checkpoints)):
        before = _nature_of(folder)
        if before is not None:
            return [foreign(folder, line) for line in differences(before, now)]
    return []


def require_same(checkpoints: Path, now: Nature) -> None:
    """Raise ForeignCheckpointError if the newest checkpoint is of another nature than `now`."""
    problems = foreign_checkpoint(checkpoints, now)
    if problems:
        raise ForeignCheckpointError(problems)


def _nature_of(folder: Path) -> Nature | None:
    """What a checkpoint says that it belongs to; None if that is damaged."""
    try:
        state = (folder / "state.json").read_bytes()
        files = json.loads((folder / "manifest.json").read_bytes())["files"]
        if files["state.json"] != hashlib.sha256(state).hexdigest():
            return None
        nature = json.loads(state)["identity"]["nature"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return nature if isinstance(nature, dict) else None


def differences(before: Nature, now: Nature) -> list[str]:
    """What of `now` is not as it was, a line each; settings that one of the two lacks do not count."""
    lines = []
    if before.get("optimizer") != now.get("optimizer"):
        lines.append(_differ("optimizer", before.get("optimizer"), now.get("optimizer")))
    if [key for key in _SUBJECTS if before.get(key)] != [key for key in _SUBJECTS if now.get(key)]:
        return [*lines, f"was made by training {_subject(before)}, this config trains {_subject(now)}"]
    return [*lines, *_details(before, now)]


def _details(before: Nature, now: Nature) -> Iterator[str]:
    """The differences of two trainings of the same subject."""
    old, new = _settings(before), _settings(now)
    for key in (key for key in new if key in old):
        if old[key] != new[key]:
            yield _differ(key, old[key], new[key])
    hashes = before.get("base model"), now.get("base model")
    if None not in hashes and hashes[0] != hashes[1]:
        yield f"was made on another base model (hash {hashes[0]}, this config's has {hashes[1]})"


def _differ(key: str, before: Any, now: Any) -> str:
    return f"was made with {key} {_said(before)}, this config has {_said(now)}"


def _said(value: Any) -> str:
    """A value as a job file has it."""
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


def _subject(nature: Nature) -> str:
    """What a training teaches."""
    if nature.get("trained part"):
        return f"an {nature['trained part']}"
    parts = [f"a network ({nature['adapter'].partition(' ')[0]})"] if nature.get("adapter") else []
    parts += ["an embedding"] if nature.get("embedding") else []
    return " and ".join(parts) or "the whole model"


def _settings(nature: Nature) -> dict[str, Any]:
    """What can differ between two trainings of one subject, by the names of the config."""
    known = {key: nature[key] for key in nature if "." in key or key == "objective"}
    if nature.get("adapter"):
        title, _, alpha = nature["adapter"].partition(" with alpha ")
        known |= {"network.type": title.lower(), "network.lokr_full_rank": alpha == _FULL}
        if alpha != _FULL:
            known["network.linear_alpha"] = alpha
    if nature.get("embedding"):
        known["embedding.tokens"] = nature["embedding"].partition(" ")[0]
    return known
