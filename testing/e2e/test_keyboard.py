"""Every page by keyboard alone: Tab reaches all that can be used, shows where it is, and leads out again."""

from __future__ import annotations

from typing import Any

import pytest

from testing.e2e.conftest import open_tab
from testing.e2e.test_job_flow import expect
from testing.e2e.test_looks import PAGES, pages_of_jobs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
MOST_TABS = 400
# What can be used with a mouse: numbered, so that what has the focus can be told. Of radio buttons with one
# name Tab reaches the chosen one, arrows the others.
NUMBER = """() => {
  const found = [...document.querySelectorAll(
    "a[href], button, input, select, textarea, summary, [onclick], [role=button], [tabindex]")];
  const usable = found.filter((each) => each.checkVisibility({visibilityProperty: true}) && !each.disabled
    && each.type !== "hidden" && each.getAttribute("tabindex") !== "-1"
    && !(each.type === "radio" && !each.checked));
  usable.forEach((each, number) => { each.dataset.number = number; });
  return usable.map((each) => each.outerHTML.slice(0, 120));
}"""
FOCUSED = """() => {
  const now = document.activeElement, style = getComputedStyle(now);
  const outlined = (s) => s.outlineStyle !== "none" && parseFloat(s.outlineWidth) > 0;
  const shown = (s) => outlined(s) || s.boxShadow !== "none";
  const box = now.getBoundingClientRect();
  const seen = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  return {number: now.dataset.number ?? null, body: now === document.body, html: now.outerHTML.slice(0, 120),
          visible: shown(style), seen};
}"""
# What the element with the focus is called; nothing of the page itself.
CALLED = """() => {
  const now = document.activeElement;
  if (now === document.body) return "";
  const labels = [...(now.labels ?? [])].map((each) => each.innerText);
  return [now.innerText, now.getAttribute("aria-label"), ...labels].join(" ");
}"""


def walk(page: Any, path: str) -> list[str]:
    """What is wrong with a page for somebody who presses Tab."""
    page.goto(path)
    usable = page.evaluate(NUMBER)
    first = page.evaluate(FOCUSED)["number"]  # a page may begin in a field
    reached = set() if first is None else {int(first)}
    found = []
    for _ in range(min(MOST_TABS, 2 * len(usable) + 10)):
        page.keyboard.press("Tab")
        now = page.evaluate(FOCUSED)
        if now["body"] or (now["number"] is not None and int(now["number"]) in reached):
            break  # around once
        if now["number"] is not None:
            reached.add(int(now["number"]))
        if not now["visible"]:
            found.append(f"{path}: no sign of the focus on {now['html']}")
        if not now["seen"]:
            found.append(f"{path}: out of sight with the focus: {now['html']}")
    missing = [html for number, html in enumerate(usable) if number not in reached]
    if len(reached) < MOST_TABS:
        found += [f"{path}: Tab does not reach {html}" for html in missing]
    return found


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_tab_reaches_and_shows_everything(browser, server, width, scheme):
    with open_tab(browser, server, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        found = [wrong for path in [*PAGES, *pages_of_jobs(page)] for wrong in walk(page, path)]
    assert not found, "\n".join(found)


def tab_to(page: Any, text: str) -> None:
    """Press Tab until what has the focus is called `text`."""
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        if text in page.evaluate(CALLED):
            return
    raise AssertionError(f"Tab does not reach {text}")


def press_on(page: Any, text: str) -> None:
    """Press Tab until what has the focus is called `text`, then Enter."""
    tab_to(page, text)
    page.keyboard.press("Enter")


def test_a_job_is_made_and_deleted_without_a_mouse(page):
    page.goto("/")
    press_on(page, "New job")
    page.wait_for_url("**/jobs/new**")
    press_on(page, "drawings")
    page.wait_for_url("**dataset=drawings**")
    page.locator('[name="f:config.name"]').focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("by keyboard")
    press_on(page, "Save as draft")
    expect(page.locator("h1")).to_have_text("by keyboard")
    press_on(page, "Delete")
    page.wait_for_url("**/delete")
    press_on(page, "Delete")
    page.wait_for_url("**/jobs")
    expect(page.locator("main")).not_to_contain_text("by keyboard")
