"""TensorBoard and Weights & Biases, through accelerate's trackers. metrics.jsonl holds all they are told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.session import Session
from toolkit.config_modules.process import RunProcess
from toolkit.paths import resolve_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate.tracking import GeneralTracker


def trackers_of(section: RunProcess, name: str) -> list[GeneralTracker]:
    """The trackers that a section asks for, not started yet; the config was checked for their packages."""
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    found: list[GeneralTracker] = []
    if section.log_dir is not None:
        found.append(TensorBoardTracker(name, str(resolve_path(section.log_dir))))
    logging = section.logging
    if logging.use_wandb:
        mode = os.environ.get("WANDB_MODE", "offline")
        found.append(WandBTracker(logging.project_name, name=logging.run_name or name, mode=mode))
    return found


@contextmanager
def tracking(section: RunProcess, session: Session) -> Iterator[None]:
    """Inside, the session's numbers also go to the trackers of the section.

    accelerate's trackers ask its state which process they are in, so the accelerator comes first.
    """
    started: list[GeneralTracker] = []
    for tracker in trackers_of(section, session.folder.name):
        tracker.start()
        started.append(tracker)
    listen = _listener(started)
    if started:
        for tracker in started:
            # As written: an expanded ${VARIABLE} may be a secret.
            tracker.store_init_configuration(flat(session.loaded.raw))
        session.listeners.append(listen)
        session.say(f"also recorded by {', '.join(tracker.name for tracker in started)}")
    try:
        yield
    finally:
        for tracker in started:
            tracker.finish()
        if started:
            session.listeners.remove(listen)


def _listener(trackers: list[GeneralTracker]) -> Any:
    def listen(step: int, values: dict[str, Any]) -> None:
        numbers = flat(values)
        numbers = {key: value for key, value in numbers.items() if isinstance(value, int | float)}
        for tracker in trackers:
            tracker.log(numbers, step=step)

    return listen


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names; what is no number, flag or text is told as text.

    >>> flat({"a": {"b": 1}, "c": [2.5, None]})
    {'a.b': 1, 'c.0': 2.5}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            found |= flat({str(index): each for index, each in enumerate(value)}, f"{name}.")
        elif value is not None:
            found[name] = value if isinstance(value, bool | int | float | str) else str(Path(str(value)))
    return found
