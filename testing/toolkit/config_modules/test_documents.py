"""Files that are small to write and endless to read."""

from __future__ import annotations

import pytest

from testing.config_helpers import problems_of

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize("alias", ["[*c{0}, *c{0}]", "{{<<: [*c{0}, *c{0}]}}"])
def test_aliases_of_aliases_are_refused_with_their_line(alias):
    levels = [f"c{i + 1}: &c{i + 1} {alias.format(i)}" for i in range(30)]
    (problem,) = problems_of("\n".join(["c0: &c0 {a: 1}", *levels]))
    assert problem.code == "config.syntax"
    assert problem.message == "holds more than 50000 values once its aliases are spelled out"
    assert 12 < problem.line < 18


def test_an_alias_inside_its_own_anchor_is_refused():
    (problem,) = problems_of("job: &a [*a]\n")
    assert problem.code == "config.syntax"
    assert "nested too deeply" in problem.message


def test_a_long_file_without_aliases_may_be_read():
    (problem,) = problems_of("- " + "[" + "1, " * 60_000 + "]")
    assert "is no job description" in problem.message


@pytest.mark.parametrize("text", ["[" * 50_000, '{"job": ' + "9" * 5000 + "}"])
def test_json_that_cannot_be_read_is_refused(text):
    (problem,) = problems_of(text, file="job.json")
    assert problem.code == "config.syntax"


def test_json_of_many_levels_has_no_lines_and_is_read_all_the_same():
    (problem,) = problems_of("[" * 200 + "]" * 200, file="job.json")
    assert "is no job description" in problem.message
