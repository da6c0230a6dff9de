"""Errors made for the person at the keyboard: one line each, with place, value and remedy. Torch-free.

Everything a user can get wrong is raised as a `UserError`; `run.py` prints its lines and exits with its
code, without a traceback. Any other exception is a bug of ours and keeps its full traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

EXIT_OK = 0
EXIT_FAILURE = 1  # a job failed, or a bug of ours
EXIT_USAGE = 2  # bad command line, config or data: nothing was started
EXIT_STOPPED = 3  # ended early on request (commands/stop, Ctrl-C, SIGTERM) with a valid checkpoint
EXIT_INTERRUPTED = 130  # Ctrl-C with nothing saved; what shells use for it


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to fix. `code` is stable and documented; `key` is a dotted path such as `train.lr`.

    value: what the file says there, as written, for programs; the message names it where it helps.
    """

    code: str
    message: str
    file: str | None = None
    line: int | None = None
    key: str | None = None
    remedy: str | None = None
    value: str | int | float | bool | None = None

    def __str__(self) -> str:
        place = self.file or ""
        if self.file and self.line is not None:
            place = f"{self.file}:{self.line}"
        parts = [part for part in (place, self.key, self.message) if part]
        text = ": ".join(parts)
        return f"{text} ({self.remedy})" if self.remedy else text


class UserError(Exception):
    """Base of every mistake a user can make. Holds one or more problems; str() gives one line for each."""

    exit_code = EXIT_USAGE
    default_code = "user"

    def __init__(self, problems: str | Problem | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = [Problem(self.default_code, problems)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: list[Problem] = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


class ConfigError(UserError):
    """A job description that cannot run as written."""

    default_code = "config"


class DatasetError(UserError):
    """Pictures, captions or folders that cannot be used."""

    default_code = "data"


class ModelError(UserError):
    """A model, LoRA or component that cannot be loaded."""

    default_code = "model"


class RunError(UserError):
    """A run that cannot go on: locked folder, foreign checkpoint, non-finite loss."""

    exit_code = EXIT_FAILURE
    default_code = "run"


class JobStopped(Exception):  # noqa: N818 - an outcome rather than an error
    """The job was asked to end early and did, leaving a valid checkpoint."""


def _edit_distance(first: str, second: str) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions between two words."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, or None if nothing is close; ties go to the one of equal length."""
    word = str(name).lower()
    matches = get_close_matches(word, list(known), n=5, cutoff=0.6)
    return min(
        matches, key=lambda match: (_edit_distance(word, match), abs(len(match) - len(word))), default=None
    )
