"""A working folder for tests that read job files."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a dataset and an empty config root."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "config" / "examples").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("toolkit.config_modules.lookup.CONFIG_ROOT", tmp_path / "config")
    monkeypatch.setattr("toolkit.config_modules.lookup.ROOT", tmp_path)
    return tmp_path
