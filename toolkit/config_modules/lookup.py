"""Finding the file that a name on the command line means, and reading `.env`. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path

from toolkit.config_modules.documents import EXTENSIONS
from toolkit.errors import ConfigError, Problem, did_you_mean
from toolkit.paths import CONFIG_ROOT, ROOT


def find_config(name: str | os.PathLike[str], config_root: Path | None = None) -> Path:
    """The config file called `name`: a path, or a name in config/ or config/examples/.

    The extension may be left out; such a name is looked up in config/ first, any other as a path first.
    Raises ConfigError.
    """
    root = CONFIG_ROOT if config_root is None else config_root
    path = Path(name).expanduser()
    endings = [""] if path.suffix.lower() in EXTENSIONS else [*EXTENSIONS, ""]
    in_config = [folder / f"{path}{ending}" for folder in (root, root / "examples") for ending in endings]
    as_path = [path] if endings == [""] else [Path(f"{path}{ending}") for ending in ("", *EXTENSIONS)]
    candidates = as_path + in_config if endings == [""] else in_config + as_path
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = {entry.stem: entry for entry in _configs(root)} | {entry.name: entry for entry in _configs(root)}
    guess = did_you_mean(path.name, known)
    remedy = (
        f"did you mean '{guess}'?" if guess else f"looked in {Path.cwd()}, {root} and {root / 'examples'}"
    )
    raise ConfigError(Problem("config.not_found", f"config file '{name}' not found", remedy=remedy))


def _configs(root: Path) -> list[Path]:
    folders = [folder for folder in (root, root / "examples") if folder.is_dir()]
    return [entry for folder in folders for entry in sorted(folder.iterdir()) if entry.suffix in EXTENSIONS]


def load_env_files() -> None:
    """Put the variables of .env (working folder, then repository) into the environment; set ones win."""
    files = [folder / ".env" for folder in (Path.cwd(), ROOT)]
    files = [file for file in files if file.is_file()]
    if files:
        from dotenv import load_dotenv

        for file in files:
            load_dotenv(file)
