"""The command that imports: what it prints, its exit codes, and that it can be run again."""

from __future__ import annotations

import pytest

from testing.web.foreign_kit import make_database, make_run, tree
from tools import import_ai_toolkit


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """An ai-toolkit with a job and a run, and a server's data folder of its own."""
    monkeypatch.setenv("AI_TOOLKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("AI_TOOLKIT_DEVICES", "cpu:0")
    folder = tmp_path / "ai-toolkit"
    make_database(folder / "aitk_db.db", [{"name": "cat", "status": "error", "info": "no memory"}],
                  settings={"HF_TOKEN": "hf_secret"})  # fmt: skip
    make_run(folder / "output" / "dog")
    return folder


def test_it_says_what_would_happen_does_it_and_does_it_once(foreign, capfd, monkeypatch):
    before = tree(foreign)
    monkeypatch.chdir(foreign.parent)
    assert import_ai_toolkit.main(["ai-toolkit", "--dry-run"]) == 0
    looked = capfd.readouterr().out
    assert "2 jobs would be imported, 0 left out" in looked
    assert import_ai_toolkit.main([str(foreign)]) == 0
    done = capfd.readouterr().out
    assert "+ cat -> cat, failed: failed in ai-toolkit: no memory" in done
    assert f"run: {foreign / 'output' / 'dog'}" in done and "HF_TOKEN: set" in done
    assert "training_folder" in done and "hf_secret" not in done + looked
    assert import_ai_toolkit.main(["ai-toolkit/output", "--db", "ai-toolkit/aitk_db.db"]) == 0
    again = capfd.readouterr().out
    assert "cat: left out: it was imported before, as cat" in again and "0 jobs imported, 2 left out" in again
    assert tree(foreign) == before


def test_a_mistake_is_one_line(foreign, capfd):
    assert import_ai_toolkit.main([str(foreign / "none")]) == 2
    (foreign / "aitk_db.db").write_text("no database")
    assert import_ai_toolkit.main([str(foreign)]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines)
    assert "is no folder" in lines[0] and "is no SQLite database" in lines[1]
