"""python -m web.importing PATH: what tools/import_ai_toolkit.py runs, as tools do not import the server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit.config_modules.lookup import load_env_files
from toolkit.errors import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, UserError
from web.app import make_services
from web.importing.plan import Entry, Plan
from web.importing.service import import_ai_toolkit
from web.problems import ApiError
from web.settings import from_environment


def main(argv: Sequence[str] | None = None) -> int:
    """Import, print what became of each job, and say how many there were. The exit code."""
    parser = argparse.ArgumentParser(prog="python -m web.importing", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--db", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    wanted = parser.parse_args(argv)
    load_env_files()
    try:
        services = make_services(from_environment())
        try:
            plan = import_ai_toolkit(services, wanted.path, wanted.db, dry_run=wanted.dry_run)
        finally:
            services.database.close()
    except UserError as error:
        for problem in error.problems:
            sys.stderr.write(f"error: {problem}\n")
        return EXIT_USAGE
    except ApiError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILURE
    sys.stdout.write("\n".join(lines(plan, dry_run=wanted.dry_run)) + "\n")
    return EXIT_OK


def lines(plan: Plan, *, dry_run: bool) -> Iterator[str]:
    """What an import did, or would do, for a terminal."""
    for entry in plan.entries:
        yield from _lines_of(entry)
    if plan.settings:
        yield "settings there, of which none is taken over:"
        yield from (f"  {key}: {value}" for key, value in plan.settings.items())
    yield from (f"note: {note}" for note in plan.notes)
    left_out = len(plan.entries) - len(plan.imported)
    verb = "would be imported" if dry_run else "imported"
    yield f"{len(plan.imported)} jobs {verb}, {left_out} left out, from {plan.source}"


def _lines_of(entry: Entry) -> Iterator[str]:
    if entry.skipped:
        yield f"- {entry.origin}: left out: {entry.skipped}"
        return
    yield f"+ {entry.origin} -> {entry.name}, {entry.state}: {entry.reason}"
    if entry.folder is not None:
        yield f"    run: {entry.folder}"
    yield from (f"    to solve before it can be queued: {problem}" for problem in entry.problems)
    yield from (f"    note: {note}" for note in entry.notes)


if __name__ == "__main__":
    sys.exit(main())
