"""Pages stay true: a slow line does not keep the events away; what is deleted elsewhere is told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from testing.e2e.test_job_flow import expect

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
RESYNC = 'document.body.dispatchEvent(new CustomEvent("resync", {bubbles: true}))'


def make_job(page: Any, folder: Path, name: str) -> str:
    """A draft; returns its id."""
    process = {"type": "sd_trainer", "model": {"name_or_path": str(folder)}}
    config = {"job": "extension", "config": {"name": name, "process": [process]}}
    made = page.request.post("/api/jobs", data={"config_yaml": json.dumps(config)})
    assert made.status == 201, made.text()
    return str(made.json()["id"])


def test_the_stream_opens_however_late_a_script_comes(page):
    def late(route: Any) -> None:
        time.sleep(1)
        route.continue_()

    page.route("**/hx-sse.min.js", late)
    with page.expect_response("**/api/events", timeout=10_000) as stream:
        page.goto("/jobs")
    assert stream.value.status == 200


@pytest.mark.parametrize("tab", ["", "/loss", "/samples", "/files", "/config", "/events"])
def test_a_page_of_a_job_deleted_elsewhere_says_so(page, server_folder, tab):
    name = f"gone{tab.replace('/', '_')}"
    job_id = make_job(page, server_folder, name)
    with page.expect_response("**/api/events"):  # the stream that will tell
        page.goto(f"/jobs/{job_id}{tab}")
    assert page.request.delete(f"/api/jobs/{job_id}").status == 204
    expect(page.locator("main [role=alert]")).to_have_text("This job was deleted.")
    expect(page.locator("h1")).to_have_text(name)
    page.evaluate(RESYNC)
    page.wait_for_timeout(
        1500
    )  # longer than scripts hold back a question; the fixture fails on a refused one
    page.click("main >> text=All jobs")
    expect(page.locator("h1")).to_have_text("Jobs")
