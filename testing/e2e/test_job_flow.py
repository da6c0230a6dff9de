"""A job from the form to its models, as somebody at a browser sees it."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
TRAINS = 240_000  # ms: a process that imports torch on a busy machine, and a few hundred small steps


def expect(found: Any) -> Any:
    """Playwright's own; imported late, for who has it not."""
    from playwright.sync_api import expect as expected

    return expected(found)


def fill(page: Any, **values: str) -> None:
    """Fill fields of the form, named as in the YAML with __ for dots."""
    for name, value in values.items():
        page.fill(f'[name="f:{name.replace("__", ".")}"]', value)


def wait_for_state(page: Any, state: str) -> None:
    """Wait until the head of the job's page says so, by itself."""
    page.locator(f"#job-head .badge.{state}").wait_for(timeout=TRAINS)


def step_of(page: Any) -> int:
    """The step that the head of the page shows."""
    found = re.search(r"step (\d+) of", page.inner_text("#job-head"))
    return int(found[1]) if found else 0


def make(page: Any) -> None:
    """From the dashboard to a job that is saved and queued, past a mistake in its config."""
    page.goto("/")
    page.click("text=New job")
    page.click("text=drawings")
    fill(page, config__name="browser <b>", train__steps="many", sample__sample_every="20")
    page.click("text=Show as YAML")
    expect(page.locator("#problems")).to_contain_text("cannot name a folder")
    expect(page.locator("#gutter .bad").first).to_be_visible()
    page.click("text=Show as form")
    fill(page, config__name="browser", train__steps="400", train__batch_size="2", save__save_every="20",
         sample__prompts="a red circle\na blue square", sample__sample_steps="3")  # fmt: skip
    page.click("#editor button[value=check]")
    expect(page.locator("#check-title")).to_contain_text("nothing is wrong", timeout=60_000)
    page.click("text=Save and start")
    expect(page.locator("h1")).to_have_text("browser")


def watch_and_stop(page: Any) -> int:
    """Follow the job to some step and stop it there; the step that it stopped at."""
    early, compared = page.context.new_page(), page.context.new_page()
    early.goto(f"{page.url}/loss")
    compared.goto(f"/compare?job={page.url.rpartition('/')[2]}")
    wait_for_state(page, "running")
    expect(page.locator("#log")).to_contain_text("Training", timeout=TRAINS)
    expect(page.locator("#job-head")).to_contain_text(re.compile(r"step ([2-9]\d|\d{3}) of"), timeout=TRAINS)
    page.click("text=Sample now")
    expect(page.locator("#toasts")).to_contain_text("Draws previews")
    other = page.context.new_page()
    other.goto(page.url)
    page.click("#do-stop-save")
    for tab in (page, other):  # a second tab tells the truth too, without being touched
        wait_for_state(tab, "stopped")
    compared.locator("#runs .badge.stopped").wait_for()
    compared.locator("#pictures img").first.wait_for()
    early.locator("#chart canvas").wait_for()  # there was nothing to draw when it was opened
    for tab in (other, compared, early):
        tab.close()
    page.bring_to_front()
    return step_of(page)


def look_at_results(page: Any) -> None:
    """The graph, and the pictures by keyboard."""
    page.click(".tabs >> text=Loss")
    page.locator("#chart canvas").wait_for()
    page.check("#log-scale")
    page.click(".tabs >> text=Samples")
    page.locator("table.samples img").first.click()
    page.locator("#viewer-title").wait_for()
    page.wait_for_load_state()  # keys are the script's
    before = page.url
    page.keyboard.press("ArrowUp")
    page.wait_for_url(lambda url: url != before)
    page.go_back()
    page.wait_for_url(before)
    page.click("#viewer button:has-text('Compare')")
    page.locator("#wipe").wait_for()  # the script shows it
    page.focus("#wipe")
    page.keyboard.press("ArrowRight")
    shown = page.evaluate("document.getElementById('other').style.clipPath")
    assert shown.replace("0px", "0") == "inset(0 49% 0 0)"


def draw_with_it(page: Any) -> None:
    """From the finished LoRA to pictures of it."""
    page.click('[aria-label="Draw pictures with browser.safetensors"]')
    expect(page.locator('[name="f:generate.prompts"]')).to_have_value(
        re.compile("a red circle, a blue square")
    )
    fill(page, generate__num_repeats="3")
    page.click("text=Save and start")
    expect(page.locator("h1")).to_have_text("browser_pictures")
    wait_for_state(page, "completed")
    expect(page.locator("#results .gallery img")).to_have_count(6)  # of itself, while it drew
    page.click(".tabs >> text=Pictures")
    page.locator(".gallery img").nth(4).click()
    expect(page.locator("#viewer-title")).to_have_text("Picture 5 of 6")
    page.wait_for_load_state()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-title")).to_have_text("Picture 6 of 6")
    page.wait_for_load_state()
    expect(page.locator(".recipe")).to_contain_text("browser.safetensors")
    assert page.locator("#shown").evaluate("img => img.decode().then(() => img.naturalWidth)") > 0
    page.keyboard.press("Escape")
    expect(page.locator("#samples-title")).to_have_text("Pictures")


def test_a_job_is_made_watched_stopped_and_resumed(page):
    make(page)
    stopped = watch_and_stop(page)
    assert 20 <= stopped < 400
    look_at_results(page)
    page.click(".tabs >> text=Overview")
    page.click(f"text=Resume from step {stopped}")
    wait_for_state(page, "completed")
    assert step_of(page) == 400
    page.click(".tabs >> text=Files")
    with page.expect_download() as download:
        page.click("text='browser.safetensors'")
    assert download.value.path().stat().st_size > 1000
    trained = page.url
    draw_with_it(page)
    page.goto(trained)
    page.click(".tabs >> text=Events")
    for word in ("created", "enqueued", "its turn on cpu:0", "stop asked for: save", "completed"):
        expect(page.locator("#events")).to_contain_text(word)
