"""python -m web: serve the UI and the API, and run the queue."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from toolkit.errors import EXIT_OK, EXIT_USAGE, UserError
from toolkit.packages import explain_missing_packages

EPILOG = """environment: AI_TOOLKIT_AUTH (token; needed for another address than this machine's own),
AI_TOOLKIT_HOST, AI_TOOLKIT_PORT, AI_TOOLKIT_ALLOWED_HOSTS (names of this server, with commas),
AI_TOOLKIT_ROOT_PATH, AI_TOOLKIT_SECURE_COOKIE (1 behind TLS), AI_TOOLKIT_DEVICES (such as gpu:0,cpu:0),
AI_TOOLKIT_DATA, AI_TOOLKIT_OUTPUT, AI_TOOLKIT_DATASETS, AI_TOOLKIT_IMPORT_ROOTS"""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; jobs that run go on without the server. The exit code."""
    parser = argparse.ArgumentParser(prog="python -m web", description=__doc__, epilog=EPILOG)
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on (default: 8675)")
    arguments = parser.parse_args(argv)

    from toolkit.config_modules.lookup import load_env_files

    load_env_files()
    given = {"AI_TOOLKIT_HOST": arguments.host, "AI_TOOLKIT_PORT": arguments.port}
    os.environ.update({key: value for key, value in given.items() if value})

    import uvicorn

    from web.app import create_app
    from web.settings import from_environment

    try:
        settings = from_environment()
        app = create_app(settings)
    except UserError as error:
        for problem in error.problems:
            sys.stderr.write(f"error: {problem}\n")
        return EXIT_USAGE
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.stderr.write(f"AI Toolkit: http://{settings.host}:{settings.port}{settings.root_path}/\n")
    uvicorn.run(
        app, host=settings.host, port=settings.port, root_path=settings.root_path, log_level="info",
        access_log=False, server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=2,  # a stream of events never ends by itself
    )  # fmt: skip
    return EXIT_OK


if __name__ == "__main__":
    explain_missing_packages()
    sys.exit(main())
