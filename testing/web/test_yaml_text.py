"""Changes of a YAML text in place: right for any text, and gentle to comments where that is possible."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.paths import ROOT
from web.forms.yaml_text import GONE, change, changed_data, parse

TEXT = """# top
a: 1  # one
b:
  c: [1, 2]   # list
  d:
    - x
    - y   # why
# between
e: {f: 1, g: two}
h: "quoted"   # end
"""


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (["a"], 5, "a: 5  # one"),
        (["b", "c"], [3], "  c: [3]   # list"),
        (["e", "g"], "x: y", "e: {f: 1, g: 'x: y'}"),
        (["e", "f"], GONE, "e: {g: two}"),
        (["h"], True, "h: true   # end"),
        (["b", "z"], "new", "  z: new"),
        (["i", "j"], 1, "  j: 1"),
        (["b", "d"], ["p"], "    - p   # why"),
        (["b", "d", 1], GONE, "    - x"),
        (["b", "d", 2], "z", "    - z"),
    ],
)
def test_a_change_touches_its_own_line_only(path, value, line):
    changed = change(TEXT, path, value)
    assert line in changed.split("\n")
    assert parse(changed) == changed_data(parse(TEXT), path, value)
    missing = [each for each in TEXT.split("\n") if each not in changed.split("\n")]
    assert len(missing) <= 3 and "# top" in changed and "# between" in changed


def test_a_section_that_loses_its_last_key_goes_too():
    assert change("a: 1\nb:\n  c: 2\n", ["b", "c"], GONE) == "a: 1\n"
    assert parse(change("a: {b: {c: 1}}\n", ["a", "b", "c"], GONE)) in ({}, None)


def test_a_place_that_cannot_be_is_refused():
    for path in (["a", "b"], ["b", "d", 7], ["b", "d", "x"]):
        with pytest.raises(ValueError, match=r"place|there is no"):
            change(TEXT, path, 1)


KEYS = st.sampled_from("abc")
SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab :#-\n'\"[{&*!|>%@", max_size=6)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    data=st.dictionaries(KEYS, DATA, min_size=1, max_size=3), flow=st.sampled_from([None, True, False]),
    path=st.lists(KEYS | st.integers(0, 2), min_size=1, max_size=3), value=DATA,
)  # fmt: skip
def test_the_text_says_what_was_asked_for_whatever_it_is(data: Any, flow: Any, path: Any, value: Any):
    text = yaml.safe_dump(data, default_flow_style=flow, sort_keys=False)
    try:
        expected = changed_data(copy.deepcopy(data), path, value)
    except ValueError:
        return
    assert parse(change(text, path, value)) == expected


@pytest.mark.parametrize(
    "path", sorted((ROOT / "config" / "examples").glob("*.yml")), ids=lambda path: path.stem
)
def test_comments_of_examples_survive(path):
    text = path.read_text(encoding="utf-8")
    changed = change(
        change(text, ("config", "process", 0, "save", "save_every"), 77), ("config", "name"), "other"
    )
    comments = [line[line.index("#") :] for line in text.split("\n") if " # " in line or line.startswith("#")]
    lost = [comment for comment in comments if comment not in changed]
    assert not lost
