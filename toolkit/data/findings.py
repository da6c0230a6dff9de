"""What a scan finds: problems that stop a run, notes, and oddities that are notes or, if strict, problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.errors import Problem


@dataclass(slots=True)
class Findings:
    """Collects what is found in one dataset; strict makes a problem of every file that would be a note."""

    strict: bool = False
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def odd(
        self,
        folder: Path,
        told: str,
        files: Mapping[str, str],
        *,
        code: str,
        shown: Iterable[str] | None = None,
        hint: str = "",
    ) -> None:
        """Files (name -> what is odd about it) that are used or left out in a way that may surprise.

        told: the note in one sentence, which the first names follow (or of `shown`, in their place). Nothing
        happens without files.
        """
        if not files:
            return
        if self.strict:
            remedy = f"mend it, or leave out strict{hint}"
            self.problems += [
                Problem(code, what, file=str(folder / name), remedy=remedy) for name, what in files.items()
            ]
        else:
            self.notes.append(f"{folder}: {told}: {first_names(shown or files)}{hint}")

    def odd_setting(self, message: str, key: str, *, code: str) -> None:
        """A setting that does not fit the files: a note, or a problem if strict."""
        if self.strict:
            self.problems.append(Problem(code, message, key=key))
        else:
            self.notes.append(f"{key}: {message}")


def first_names(names: Iterable[str], limit: int = 5) -> str:
    """The first few of some names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
