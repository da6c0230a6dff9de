"""python -m testing.torture.server DATA PORT: the web server over stand-ins for run.py, on three lanes."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import uvicorn

from web.app import create_app
from web.settings import WebSettings

STAND_IN = Path(__file__).with_name("stand_in.py")
# run.py finds its modules beside itself; so does the stand-in, with the repository as its working folder.
COMMAND = (
    sys.executable, "-c", "import runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, '.'); "
    "runpy.run_path(sys.argv[0], run_name='__main__')", str(STAND_IN),
)  # fmt: skip


def main(data: str, port: str) -> None:
    """Serve until killed."""
    logging.basicConfig(level=logging.WARNING)
    settings = WebSettings(
        data_root=Path(data) / "data", output_root=Path(data) / "output", devices=("gpu:0", "gpu:1", "cpu:0"),
        command=COMMAND, tick_s=0.1, stop_grace_s=5.0,
    )  # fmt: skip
    uvicorn.run(create_app(settings), port=int(port), log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
