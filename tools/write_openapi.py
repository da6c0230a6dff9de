"""Write docs/openapi.json, the description of the web API: python -m tools.write_openapi"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.paths import ROOT
from toolkit.runs import atomic

# The tools do not import the web server; it is asked as a program.
_PROGRAM = """
import json, sys, tempfile
from pathlib import Path
from web.app import create_app
from web.settings import WebSettings
with tempfile.TemporaryDirectory() as folder:
    app = create_app(WebSettings(data_root=Path(folder), schedule=False))
    json.dump(app.openapi(), sys.stdout)
    app.state.services.database.close()
"""


def described() -> str:
    """The description of the API as it is now."""
    command = [sys.executable, "-c", _PROGRAM]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return json.dumps(json.loads(shown), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file; with --check compare only. 1 if it differs."""
    parser = argparse.ArgumentParser(prog="python -m tools.write_openapi", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "openapi.json")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file is out of date")
    wanted = parser.parse_args(argv)
    text = described()
    if wanted.check:
        same = wanted.out.exists() and wanted.out.read_text(encoding="utf-8") == text
        print("up to date" if same else f"{wanted.out} is out of date: make openapi")
        return 0 if same else 1
    atomic.write_text(wanted.out, text)
    print(wanted.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
