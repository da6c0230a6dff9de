"""Bars of the tools."""

from __future__ import annotations

import pytest

from toolkit.progress_bars import Bars


def test_what_is_counted_again_gets_a_bar_of_its_own(capsys):
    bars = Bars("picture")
    for total in (2, 5, 0):  # two folders one after the other, and an empty one
        for done in range(total + 1):
            bars("verified", done, total)
    shown = capsys.readouterr().err
    assert "2/2" in shown and "5/5" in shown and "0/2" in shown


def test_what_ends_a_count_early_begins_on_a_line_of_its_own(capsys):
    with pytest.raises(ValueError, match="broken"), Bars("picture") as bars:
        bars("verified", 1, 2)
        raise ValueError("broken")
    assert capsys.readouterr().err.endswith("\n")
