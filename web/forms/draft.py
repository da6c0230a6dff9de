"""A config while it is being written: its text, its form, what is wrong with it. Torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from toolkit.errors import Problem
from web import actions
from web.forms.cards import Card, cards_of, unplaced
from web.forms.fields import form_of, process_types
from web.forms.values import PREFIX, apply_form, entries, process_of
from web.forms.yaml_text import GONE, change, parse
from web.preflight import Checked
from web.problems import invalid
from web.services import Services

NAME = f"{PREFIX}config.name"


@dataclass(slots=True, kw_only=True)
class Draft:
    """What the page of a config shows. base: the text as it is stored; None: it has never been.

    devices and accelerate are as they were filled in; problems says what is wrong with them, by field.
    """

    text: str
    devices: tuple[str, ...]
    accelerate: str = "0"
    problems: dict[str, str] = field(default_factory=dict)
    job_id: str = ""
    etag: str = ""
    base: str | None = None
    view: str = "form"
    checked: Checked | None = None
    review: bool = False
    errors: list[str] = field(default_factory=list)
    said: str = ""

    def differences(self) -> list[str]:
        """The lines of a diff from the stored text to this one."""
        before = [] if self.base is None else self.base.splitlines()
        return list(difflib.unified_diff(before, self.text.splitlines(), "stored", "yours", lineterm=""))


@dataclass(frozen=True, slots=True, kw_only=True)
class FormView:
    """The form of a draft. cards is None where the text is not even YAML."""

    cards: list[Card] | None
    name: str
    name_problems: list[Problem]
    problems: list[Problem]
    others: list[Problem]
    notes: list[str]
    processes: int
    types: list[str]


def form_view(services: Services, draft: Draft) -> FormView:
    """What the form shows of a draft."""
    found = actions.check(services, draft.text)
    try:
        data = parse(draft.text)
    except (yaml.YAMLError, ValueError):
        data = None
    if not isinstance(data, dict) or not isinstance(data.get("config"), dict):
        return FormView(cards=None, name="", name_problems=[], problems=found.problems, others=found.problems,
                        notes=found.notes, processes=0, types=[])  # fmt: skip
    process, _ = process_of(data)
    cards = cards_of(form_of(str(process.get("type", ""))), process, found.problems)
    named = [problem for problem in found.problems if problem.key == "config.name"]
    rest = [problem for problem in unplaced(cards, found.problems) if problem not in named]
    listed = data["config"].get("process")
    name = data["config"].get("name")
    return FormView(
        cards=cards, name="" if name is None else str(name), name_problems=named, problems=found.problems,
        others=rest, notes=found.notes, processes=len(listed) if isinstance(listed, list) else 0,
        types=process_types(),
    )  # fmt: skip


def posted_text(text: str, posted: Mapping[str, str]) -> str:
    """The text with what was filled into the form. Raises 422 where the form does not fit the text."""
    try:
        data = parse(text)
        process, _ = process_of(data)
        if (
            NAME in posted
            and isinstance(data, dict)
            and posted[NAME].strip() != str((data.get("config") or {}).get("name", ""))
        ):
            text = change(text, ("config", "name"), posted[NAME].strip())
        return apply_form(text, form_of(str(process.get("type", ""))), posted)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise invalid(f"the form does not fit the config: {error}", "/text") from None


def with_entry(text: str, name: str) -> str:
    """The text with one more entry of a list such as datasets. Raises 422."""
    process, root = process_of(parse(text))
    listing = _listing(process, name)
    first = {str(each.path[-1]): "" for each in listing.fields if each.required}
    return change(text, (*root, *listing.path, entries(process, listing)), first) if entries(
        process, listing
    ) else change(text, (*root, *listing.path), [first])  # fmt: skip


def without_entry(text: str, name: str) -> str:
    """The text without an entry, named like datasets.1. Raises 422."""
    process, root = process_of(parse(text))
    name, _, number = name.rpartition(".")
    listing = _listing(process, name)
    if not number.isascii() or not number.isdigit() or int(number) >= entries(process, listing):
        raise invalid("there is no such entry", "/action")
    if entries(process, listing) == 1:
        return change(text, (*root, *listing.path), GONE)
    return change(text, (*root, *listing.path, int(number)), GONE)


def _listing(process: Any, name: str) -> Any:
    form = form_of(str(process.get("type", "")))
    found = next((each for each in form.listings if each.name == name), None)
    if found is None:
        raise invalid("there is no such list", "/action")
    return found
