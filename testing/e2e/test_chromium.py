"""Where the browser tests get their Chromium from: stand-ins of the programs on a PATH of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.e2e import chromium


def program(path: Path, text: str = "") -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    """The only folder of PATH; no Chromium of Playwright's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(chromium, "_of_playwright", lambda: None)
    return folder


def test_the_named_program_comes_first(path, tmp_path, monkeypatch, capfd):
    program(path / "google-chrome")
    assert chromium.find() == str(path / "google-chrome")
    program(path / "chromium")
    assert chromium.find() == str(path / "chromium")
    mine = program(tmp_path / "mine")
    monkeypatch.setenv("CHROMIUM", str(mine))
    assert chromium.main() == 0
    assert capfd.readouterr().out == f"{mine}\n"


def test_a_wrong_name_is_told_and_nothing_is_installed(path, monkeypatch, capfd):
    monkeypatch.setenv("CHROMIUM", "/nowhere/chrome")
    program(path / "apt-get", "exit 99")
    assert chromium.main() == 1
    assert capfd.readouterr().err == "CHROMIUM names /nowhere/chrome, which is no program\n"


@pytest.mark.parametrize(
    ("user", "sudo", "first"), [(0, False, "apt-get"), (1000, True, "sudo"), (1000, False, None)]
)
def test_packages_are_installed_by_those_who_may(path, monkeypatch, user, sudo, first):
    program(path / "apt-get")
    if sudo:
        program(path / "sudo")
    monkeypatch.setattr(chromium.os, "geteuid", lambda: user)
    ways = chromium.ways()
    assert ways[-1][0][1:] == ["-m", "playwright", "install", "chromium"]
    assert [way[0][0] for way in ways[:-1]] == ([first] if first else [])


def test_it_is_installed_where_it_is_missing(path, monkeypatch, capfd):
    made = path / "chromium"
    program(
        path / "apt-get",
        f'case "$*" in *install*) printf "#!/bin/sh\\n" >{made}; /bin/chmod +x {made};; esac',
    )
    monkeypatch.setattr(chromium.os, "geteuid", lambda: 0)
    assert chromium.main() == 0
    said = capfd.readouterr()
    assert said.out == f"{made}\n" and "installing Chromium: apt-get" in said.err


def test_without_any_way_one_line_says_what_to_do(path, monkeypatch, capfd):
    monkeypatch.setattr(chromium, "ways", lambda: [[[str(program(path / "fails", "exit 1"))]]])
    assert chromium.main() == 1
    assert capfd.readouterr().err.endswith(
        f"no Chromium, and it could not be installed here: {chromium.REMEDY}\n"
    )
