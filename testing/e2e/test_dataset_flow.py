"""A dataset from its first file to the report of its evaluation, as somebody at a browser sees it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
MEASURES = 240_000  # ms: a process that imports torch on a busy machine, and a few pictures
DROP = """(data) => {
  const files = new DataTransfer();
  files.items.add(new File([Uint8Array.from(data)], "dropped.png", {type: "image/png"}));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: files, bubbles: true, cancelable: true}));
}"""

LOSE_LAST_WORDS = """() => {
  const send = window.fetch;
  window.fetch = (url, options) => (options?.keepalive ? new Promise(() => {}) : send(url, options));
}"""


def expect(found: Any) -> Any:
    """Playwright's own; imported late, for who has it not."""
    from playwright.sync_api import expect as expected

    return expected(found)


def picture(colour: str) -> bytes:
    """The bytes of a small picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def upload(page: Any, *files: tuple[str, bytes]) -> None:
    """Choose files and send them."""
    listed = [{"name": name, "mimeType": "image/png", "buffer": content} for name, content in files]
    page.set_input_files("#files", listed)
    page.click("text=Upload")


def caption_of(page: Any, name: str, rel: str) -> str:
    """What the caption's file says."""
    return str(page.request.get(f"/api/datasets/{name}/items/{rel}/caption").json()["caption"])


def test_a_dataset_is_filled_and_captioned(page: Any) -> None:
    page.goto("/datasets")
    page.fill("#name", "browser_set")
    page.click("text=Create")
    expect(page.locator("h1")).to_have_text("Dataset: browser_set")
    page.wait_for_load_state()  # what follows is the script's
    upload(
        page,
        ("a.png", picture("red")),
        ("a.txt", b"a red thing"),
        ("b.png", picture("blue")),
        ("c.html", b"x"),
    )
    expect(page.locator("#progress")).to_contain_text("3 added, 1 left out")
    expect(page.locator("li.picture")).to_have_count(2)
    page.evaluate(DROP, list(picture("green")))
    expect(page.locator("li.picture")).to_have_count(3)
    expect(page.locator("#show option").first).to_have_text("All (3)")
    card = page.locator("li.picture[data-rel='b.png']")
    area = card.locator("textarea")
    area.fill("a blue thing")
    expect(card.locator(".state")).to_have_text("Saved")
    assert caption_of(page, "browser_set", "b.png") == "a blue thing"
    card.get_by_role("button", name="Delete b.png").click()
    expect(card).to_contain_text("is in the trash")
    page.keyboard.press("Enter")  # Undo has the focus
    expect(card.locator("textarea")).to_have_value("a blue thing")
    card.locator("textarea").fill("written and left")
    page.goto("/datasets/browser_set/picture/a.png")
    page.keyboard.press("ArrowRight")
    expect(page.locator("h1")).to_have_text("b.png")
    assert caption_of(page, "browser_set", "b.png") == "written and left"


def test_two_who_write_one_caption_lose_nothing(browser: Any, server: str) -> None:
    # A tab without the check of its console: a refused write is an error there.
    page = browser.new_context(base_url=server).new_page()
    page.goto("/datasets/zrb_faces")
    card = page.locator("li.picture").first
    rel, area = card.get_attribute("data-rel"), card.locator("textarea")
    url = f"/api/datasets/zrb_faces/items/{rel}/caption"
    before = page.request.get(url).json()["caption"]
    for mine, choice in (("mine <b>", "Keep mine"), ("mine again", "Take theirs")):
        kept = mine if choice == "Keep mine" else "theirs <i>"
        page.request.put(url, data={"caption": "theirs <i>"})
        area.fill(mine)
        area.press("Control+Enter")
        expect(card.locator(".clash-box")).to_contain_text("theirs <i>")
        card.get_by_role("button", name=choice).click()
        expect(card.locator(".clash-box")).to_have_count(0)
        expect(area).to_have_value(kept)
        page.wait_for_timeout(300)
        assert page.request.get(url).json()["caption"] == kept
    page.request.put(url, data={"caption": before})
    page.context.close()


def open_captions(browser: Any, server: str) -> tuple[Any, Any, str]:
    """A tab without the check of its console, its first picture, and the address of the picture's caption."""
    page = browser.new_context(base_url=server).new_page()
    page.goto("/datasets/zrb_faces")
    card = page.locator("li.picture").first
    return page, card, f"/api/datasets/zrb_faces/items/{card.get_attribute('data-rel')}/caption"


@pytest.mark.parametrize("arrives", ["at once", "late", "never"])
def test_a_caption_survives_a_reload_at_once_and_is_no_conflict_with_itself(browser, server, arrives):
    page, card, url = open_captions(browser, server)
    before = page.request.get(url).json()["caption"]
    late = []
    if arrives != "at once":  # what the page sends while it is left has not arrived when it is read again
        page.evaluate(LOSE_LAST_WORDS)
    if arrives == "late":  # it arrives just before what the new page sends

        def overtake(route: Any) -> None:
            if route.request.method == "PUT" and not late:
                late.append(page.request.put(url, data={"caption": "typed and gone"}))
            route.continue_()

        page.route("**/caption", overtake)
    card.locator("textarea").fill("typed and gone")
    page.reload()
    expect(card.locator("textarea")).to_have_value("typed and gone")
    if arrives != "at once":
        expect(card.locator(".state")).to_have_text("Saved")
    card.locator("textarea").fill("typed and gone on")
    card.locator("textarea").press("Control+Enter")
    expect(card.locator(".state")).to_have_text("Saved")
    expect(card.locator(".clash-box")).to_have_count(0)
    assert page.request.get(url).json()["caption"] == "typed and gone on"
    assert bool(late) == (arrives == "late")
    page.reload()
    expect(card.locator("textarea")).to_have_value("typed and gone on")
    assert page.evaluate("sessionStorage.length") == 0
    page.request.put(url, data={"caption": before})
    page.context.close()


def test_a_caption_that_was_changed_elsewhere_before_the_reload_is_a_conflict(browser, server):
    page, card, url = open_captions(browser, server)
    before = page.request.get(url).json()["caption"]
    page.evaluate(LOSE_LAST_WORDS)
    card.locator("textarea").fill("mine")
    page.request.put(url, data={"caption": "theirs"})
    page.reload()
    expect(card.locator(".clash-box")).to_contain_text("theirs")
    expect(card.locator("textarea")).to_have_value("mine")
    assert page.request.get(url).json()["caption"] == "theirs"
    card.get_by_role("button", name="Take theirs").click()
    page.reload()
    expect(card.locator("textarea")).to_have_value("theirs")
    expect(card.locator(".clash-box")).to_have_count(0)
    page.request.put(url, data={"caption": before})
    page.context.close()


def test_a_caption_is_saved_from_a_page_that_no_longer_shows_its_picture(browser, server):
    page, card, url = open_captions(browser, server)
    before = page.request.get(url).json()["caption"]
    page.evaluate(LOSE_LAST_WORDS)
    card.locator("textarea").fill("typed and gone")
    with page.expect_response(lambda answer: answer.request.method == "PUT") as answered:
        page.goto("/datasets/zrb_faces?q=nothing-is-called-this")
    assert answered.value.ok
    assert page.request.get(url).json()["caption"] == "typed and gone"
    page.request.put(url, data={"caption": before})
    page.context.close()


def test_a_dataset_is_evaluated(page: Any) -> None:
    page.goto("/datasets/drawings")
    expect(page.get_by_text("Dataset: drawings")).to_be_visible()
    page.get_by_text("Run Evaluation").first.click()
    expect(page.get_by_role("heading", name="Run Dataset Evaluation")).to_be_visible()
    page.fill("#max_samples", "4")
    page.fill("#samples_per_image", "2")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_text("Recent Evaluations")).to_be_visible()
    row = page.locator("#evaluation-table tbody tr").first
    expect(row.get_by_role("cell", name="finished", exact=True).first).to_be_visible(timeout=MEASURES)
    expect(row.get_by_role("link", name="View JSON")).to_be_visible()
    row.get_by_role("link", name="Report").click()
    expect(page.locator("h1")).to_have_text("Evaluation of drawings")
    expect(page.locator("ul.results > li")).to_have_count(4)
    page.goto("/datasets/drawings?sort=worst")
    expect(page.locator("li.picture .marks")).to_have_count(4)
