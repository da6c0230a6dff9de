"""Behind a proxy that serves us below a path: every page is crawled, and all it points at begins so."""

from __future__ import annotations

import html
import re
from collections import deque
from dataclasses import replace
from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient

from testing.web.conftest import BASE
from testing.web.dataset_kit import make_dataset, report
from testing.web.pages_support import HTML, ended_job, running_job
from testing.web.test_evaluations import write_report
from web.app import create_app
from web.launchers.attempt import AttemptFolder

PREFIX = "/ai/tools"
# What a browser or our scripts follow: links, sources, targets of forms and of htmx, the stream of events.
POINTERS = re.compile(r'\s(?:href|src|action|formaction|poster|hx-[a-z:-]+|data-[a-z-]+)="(/[^"]*)"')
MOST_PAGES = 200


@pytest.fixture
def crawled(settings, config):
    """Address -> the text of each page that links lead to, from the first one on."""
    folder = make_dataset(settings.datasets_root)
    write_report(settings.output_root, report(folder, {"cat.png": {"gain": -1.5}, "dog.png": {}}))
    app = create_app(replace(settings, root_path=PREFIX))
    with TestClient(app, base_url=BASE, root_path=PREFIX) as client:
        services = app.state.services
        for job in (running_job(services, config("runs")), ended_job(services, config("ended"))):
            printed = AttemptFolder(services.settings.jobs_root, job.id, 1).output_path
            printed.parent.mkdir(parents=True, exist_ok=True)
            printed.write_text("Training\n", encoding="utf-8")
        waiting, found = deque([f"{PREFIX}/"]), {}
        while waiting and len(found) < MOST_PAGES:
            url = waiting.popleft()
            if url in found:
                continue
            answer = client.get(url, headers=HTML, follow_redirects=False)
            location = answer.headers.get("location")
            if location is not None:
                assert location.startswith(f"{PREFIX}/"), (url, location)
            assert answer.status_code < 400, (url, answer.status_code)
            is_page = answer.headers["content-type"].startswith("text/html")
            found[url] = answer.text if is_page else ""
            links = re.findall(r'\shref="([^"#]+)', found[url])
            waiting += [urljoin(url, html.unescape(link)) for link in links if not link.startswith("http")]
    return found


def test_everything_begins_with_the_path(crawled):
    pages = {url: text for url, text in crawled.items() if text}
    assert len(pages) > 25
    wrong = [
        (url, target)
        for url, text in pages.items()
        for target in POINTERS.findall(text)
        if target != PREFIX and not target.startswith((f"{PREFIX}/", "//"))
    ]
    assert not wrong
    kinds = {re.sub(r"[0-9a-f]{12}", "ID", url.split("?")[0].removeprefix(PREFIX)) for url in pages}
    assert {
        "/", "/jobs", "/jobs/new", "/jobs/ID", "/jobs/ID/loss", "/jobs/ID/samples", "/jobs/ID/files",
        "/jobs/ID/config", "/jobs/ID/events", "/compare", "/datasets", "/datasets/pets", "/evaluations",
        "/datasets/pets/evaluate", "/settings", "/docs", "/trash",
    } <= kinds  # fmt: skip


def test_the_stream_of_events_and_the_scripts_begin_with_the_path(crawled):
    first = crawled[f"{PREFIX}/"]
    assert f'hx-sse:connect="{PREFIX}/api/events"' in first and f'data-root="{PREFIX}"' in first
