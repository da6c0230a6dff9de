"""Make jobs of the web UI out of what ai-toolkit has left: the database of its UI, and its run folders.

    python -m tools.import_ai_toolkit ~/ai-toolkit --dry-run

Nothing is copied, and nothing is written there. What was imported before is left out, so it can be run again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# As a file (`python tools/import_ai_toolkit.py`) it finds its packages only from the repository's root.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toolkit.errors import EXIT_FAILURE, EXIT_OK, EXIT_USAGE
from toolkit.packages import explain_missing_packages
from toolkit.paths import ROOT

EPILOG = f"""exit codes: {EXIT_OK} done, also if there was nothing; {EXIT_FAILURE} another import ran at once;
{EXIT_USAGE} a path or database that cannot be read. The database of the web UI is found as
`python -m web` finds it (AI_TOOLKIT_DATA); the server may run meanwhile."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.import_ai_toolkit", description=__doc__, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="folder of ai-toolkit, a folder of its runs, or one run"
    )
    parser.add_argument(
        "--db", type=Path, metavar="FILE", help="its aitk_db.db, if that does not lie in PATH itself"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print what would become of each job")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Import. Returns the exit code."""
    wanted = build_parser().parse_args(argv)
    # Tools do not import the web server; it is asked as a program.
    command = [sys.executable, "-m", "web.importing", str(wanted.path.expanduser().absolute())]
    if wanted.db is not None:
        command += ["--db", str(wanted.db.expanduser().absolute())]
    if wanted.dry_run:
        command.append("--dry-run")
    environment = {**os.environ, "PYTHONUTF8": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    explain_missing_packages()
    sys.exit(main())
