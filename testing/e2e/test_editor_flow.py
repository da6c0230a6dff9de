"""What is typed into the editor of a job, and the ways to leave it: links, Back, other views, refusals."""

from __future__ import annotations

import re
from typing import Any

import pytest

from testing.e2e.test_job_flow import expect, fill

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
STEPS = '[name="f:train.steps"]'


def leave_and_come_back(page: Any) -> None:
    """To the list of jobs by its link, and back."""
    page.get_by_role("link", name="Jobs", exact=True).click()
    page.wait_for_url("**/jobs")
    page.go_back()


def kept(page: Any) -> int:
    """How many drafts the tab keeps."""
    return int(page.evaluate("sessionStorage.length"))


def test_back_shows_what_was_typed_in_the_view_that_was_left(page: Any) -> None:
    page.goto("/jobs/new?dataset=drawings")
    fill(page, train__steps="777")
    leave_and_come_back(page)
    expect(page.locator(STEPS)).to_have_value("777")
    page.click("text=Show as YAML")
    expect(page.locator("#text")).to_have_value(re.compile("steps: 777"))
    page.fill("#text", page.input_value("#text").replace("steps: 777", "steps: 778"))
    expect(page.locator("#problems")).to_contain_text("can be queued")  # the text is watched as ever
    leave_and_come_back(page)
    expect(page.locator("#text")).to_have_value(re.compile("steps: 778"))
    page.reload()
    expect(page.locator("#text")).to_have_value(re.compile("steps: 778"))


def test_back_goes_through_the_views_and_never_back_in_time(page: Any) -> None:
    page.goto("/jobs/new?dataset=drawings")
    fill(page, train__steps="777")
    page.click("text=Show as YAML")
    page.fill("#text", page.input_value("#text").replace("steps: 777", "steps: 778"))
    page.click("text=Show as form")
    expect(page.locator(STEPS)).to_have_value("778")
    fill(page, train__steps="779")
    page.click("nav.tabs a >> nth=1")  # a place on the page is a step of the history too
    for _ in range(2):
        page.go_back()
    expect(page.locator("#text")).to_have_value(re.compile("steps: 779"))
    page.go_back()
    expect(page.locator(STEPS)).to_have_value("779")
    page.go_forward()
    expect(page.locator("#text")).to_have_value(re.compile("steps: 779"))
    leave_and_come_back(page)
    page.go_back()
    expect(page.locator(STEPS)).to_have_value("779")


def test_entries_are_added_in_place_and_kept(page: Any) -> None:
    page.goto("/jobs/new?dataset=drawings")
    page.click("text=Add to datasets")
    field = page.locator('[name="f:datasets.1.folder_path"]')
    field.fill("somewhere")
    leave_and_come_back(page)
    expect(field).to_have_value("somewhere")
    page.click("text=Remove datasets 2")
    expect(field).to_have_count(0)


def test_a_draft_is_kept_until_it_is_saved_and_a_refusal_keeps_it(browser: Any, server: str) -> None:
    # A tab without the check of its console: a refusal is an error there.
    page = browser.new_context(base_url=server).new_page()
    page.goto("/jobs/new?dataset=drawings")
    fill(page, config__name="kept until saved", train__steps="777")
    page.fill("#accelerate", "two")
    page.click("text=Save as draft")
    expect(page.locator("#accelerate-bad")).to_contain_text("a number up to 64")
    leave_and_come_back(page)
    expect(page.locator("#accelerate")).to_have_value("two")
    expect(page.locator(STEPS)).to_have_value("777")
    page.fill("#accelerate", "0")
    page.click("text=Save as draft")
    expect(page.locator("h1")).to_have_text("kept until saved")
    assert kept(page) == 0
    page.go_back()
    expect(page.locator(STEPS)).not_to_have_value("777")
    page.go_forward()
    page.click("text=Edit")
    fill(page, train__steps="778")
    page.click("#form button:has-text('Save…')")
    page.click("#confirm")
    expect(page.locator("h1")).to_have_text("kept until saved")
    assert kept(page) == 0
    page.context.close()


def test_what_is_typed_stays_where_the_server_cannot_be_reached(browser: Any, server: str) -> None:
    page = browser.new_context(base_url=server).new_page()
    page.goto("/jobs/new?dataset=drawings")
    fill(page, train__steps="777")
    page.route("**/jobs/edit", lambda route: route.abort())
    page.click("text=Show as YAML")
    expect(page.locator("#toasts")).to_contain_text("cannot be reached")
    expect(page.locator(STEPS)).to_have_value("777")
    page.unroute("**/jobs/edit")
    page.click("text=Show as YAML")
    expect(page.locator("#text")).to_have_value(re.compile("steps: 777"))
    page.context.close()


def test_a_button_that_was_pressed_before_the_scripts_were_there_is_no_dead_end(page: Any) -> None:
    page.goto("/jobs/new?dataset=drawings")
    fill(page, train__steps="777")
    page.evaluate("""() => {
      const form = document.getElementById("editor");
      form.insertAdjacentHTML("beforeend", '<input type="hidden" name="action" value="yaml">');
      form.submit();
    }""")
    expect(page.locator("#text")).to_have_value(re.compile("steps: 777"))
    page.wait_for_url("**/jobs/new?*view=yaml")
    leave_and_come_back(page)
    expect(page.locator("#text")).to_have_value(re.compile("steps: 777"))


def test_a_review_can_be_left_and_saved_though_the_job_was_changed_or_deleted_elsewhere(browser, server):
    page = browser.new_context(base_url=server).new_page()
    text = "job: train\nconfig: {name: two tabs, process: [{type: sd_trainer, train: {steps: 5}}]}\n"
    job = page.request.post("/api/jobs", data={"config_yaml": text}).json()["id"]
    page.goto(f"/jobs/{job}/edit")
    fill(page, train__steps="777")
    newer = text.replace("steps: 5", "steps: 6")
    page.request.put(f"/api/jobs/{job}", data={"config_yaml": newer})
    page.click("#form button:has-text('Save…')")
    expect(page.locator("#content")).to_contain_text("changed elsewhere")
    page.click("text=Go on editing")
    leave_and_come_back(page)
    page.click("#form button:has-text('Save…')")
    page.locator("#confirm").wait_for()
    page.request.delete(f"/api/jobs/{job}")
    page.click("#confirm")
    expect(page.locator("#content")).to_contain_text("was deleted meanwhile")
    leave_and_come_back(page)
    expect(page.locator(STEPS)).to_have_value("777")
    page.click("text=Save as draft")
    expect(page.locator("h1")).to_have_text("two tabs")
    page.context.close()


def test_back_to_a_job_that_was_deleted_meanwhile_shows_what_was_typed(browser: Any, server: str) -> None:
    page = browser.new_context(base_url=server).new_page()
    text = "job: train\nconfig: {name: soon gone, process: [{type: sd_trainer, train: {steps: 5}}]}\n"
    job = page.request.post("/api/jobs", data={"config_yaml": text}).json()["id"]
    page.goto(f"/jobs/{job}/edit")
    fill(page, train__steps="777")
    page.get_by_role("link", name="Jobs", exact=True).click()
    page.wait_for_url("**/jobs")
    page.request.delete(f"/api/jobs/{job}")
    page.go_back()
    expect(page.locator(STEPS)).to_have_value("777")
    expect(page.locator("#content")).to_contain_text("was deleted meanwhile")
    page.click("text=Save as draft")
    expect(page.locator("h1")).to_have_text("soon gone")
    page.context.close()


def test_a_browser_that_forbids_pages_to_keep_anything_can_still_edit(page: Any) -> None:
    page.add_init_script("""Object.defineProperty(window, "sessionStorage", {
      get() { throw new DOMException("not allowed", "SecurityError"); },
    })""")
    page.goto("/jobs/new?dataset=drawings")
    fill(page, config__name="kept nowhere", train__steps="777")
    page.click("text=Show as YAML")
    expect(page.locator("#text")).to_have_value(re.compile("steps: 777"))
    page.click("text=Save as draft")
    expect(page.locator("h1")).to_have_text("kept nowhere")
    page.goto("/datasets/zrb_faces")
    card = page.locator("li.picture").first
    before = card.locator("textarea").input_value()
    for text in ("kept in its file", before):
        card.locator("textarea").fill(text)
        expect(card.locator(".state")).to_have_text("Saved")
    card.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Undo").click()
    expect(card.locator("textarea")).to_have_value(before)
