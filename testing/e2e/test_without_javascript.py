"""A job and a caption with plain forms and links alone, in a browser whose JavaScript is off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from testing.e2e.conftest import open_tab

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
ENDS = 120  # s: a process that imports torch on a busy machine, and stops


@pytest.fixture
def plain(browser: Any, server: str) -> Iterator[Any]:
    """A tab at the server without JavaScript."""
    with open_tab(browser, server, java_script_enabled=False) as tab:
        yield tab


def state_of(page: Any) -> str:
    """What the head of the job's page says."""
    return str(page.locator("#job-head .badge").first.inner_text())


def test_a_job_is_written_queued_stopped_and_found(plain: Any) -> None:
    plain.goto("/jobs/new?dataset=drawings&view=yaml")
    text = plain.input_value("#text")
    assert 'name: "drawings"' in text
    plain.fill("#text", text.replace('name: "drawings"', 'name: "plain"', 1))
    plain.get_by_role("button", name="Save as draft").click()
    assert plain.inner_text("h1") == "plain"
    assert state_of(plain) == "draft"
    plain.click("#do-start")
    assert state_of(plain) in ("queued", "starting", "running")
    deadline = time.monotonic() + ENDS
    while (state := state_of(plain)) != "stopped":
        assert time.monotonic() < deadline, state
        stop = plain.locator("#do-stop-now")
        if stop.count():
            stop.click()
        else:  # it waits for its turn, or is about to end
            time.sleep(0.5)
            plain.reload()
    plain.goto("/jobs")
    assert "plain" in plain.inner_text("main")


def test_a_caption_is_saved_by_its_button(plain: Any) -> None:
    plain.goto("/datasets/zrb_faces")
    card = plain.locator("li.picture").first
    name = card.get_attribute("data-rel")
    card.locator("textarea").fill("written without a script")
    card.get_by_role("button", name="Save").click()
    answer = plain.request.get(f"/api/datasets/zrb_faces/items/{name}/caption").json()
    assert answer["caption"] == "written without a script"
