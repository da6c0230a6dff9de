"""Packages: what is said where one is not installed (mostly by another Python than that of `make venv`)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, TracebackType

ROOT = Path(__file__).parents[1]


def missing_package(error: BaseException | None) -> str | None:
    """The line for an import that failed for want of a package; None for others, and for modules of ours."""
    root = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not root or (ROOT / root).is_dir() or (ROOT / f"{root}.py").is_file():
        return None
    return (
        f"the Python package '{root}' is not installed for {sys.executable} (make venv installs everything; "
        "then run .venv/bin/python, or activate it with . .venv/bin/activate)"
    )


def explain_missing_packages() -> None:
    """From now on a package that is not installed ends the program with a line in place of a traceback."""
    usual = sys.excepthook

    def explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        line = missing_package(error)
        if line is None:
            usual(kind, error, trace)
        else:
            sys.stderr.write(f"error: {line}\n")

    sys.excepthook = explain


def skip_plugin_search() -> None:
    """Stand in for pydantic's search for plugins: there are none, and the import alone costs 20 ms."""
    name = "pydantic.plugin._loader"
    if name not in sys.modules:
        stand_in = ModuleType(name)
        stand_in.get_plugins = lambda: ()  # type: ignore[attr-defined]
        sys.modules[name] = stand_in
