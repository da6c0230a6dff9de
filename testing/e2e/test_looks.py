"""Every page as it looks after the flows: no wider than its window, and without a finding of axe-core.

axe-core (https://github.com/dequelabs/axe-core, MPL 2.0, in vendor/) knows WCAG 2 and good practice.
With SCREENSHOTS=1 (`make screenshots`) the pictures of docs/images/web/ are made of the same pages.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from testing.e2e.conftest import open_tab

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
AXE = next(Path(__file__).parent.glob("vendor/axe-core-*/axe.min.js")).read_text(encoding="utf-8")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
PAGES = [
    "/", "/jobs", "/jobs/new", "/jobs/new?dataset=drawings", "/jobs/new?dataset=drawings&view=yaml",
    "/compare", "/datasets", "/datasets/drawings", "/datasets/drawings/evaluate",
    "/datasets/drawings/picture/000005.png", "/datasets/drawings/replace",
    "/datasets/drawings/replace?find=red&replace=blue", "/datasets/drawings/duplicates",
    "/datasets/drawings/delete", "/trash", "/evaluations", "/settings", "/docs", "/login",
]  # fmt: skip
OF_A_JOB = ("", "/edit", "/loss", "/samples", "/files", "/config", "/events", "/delete")
SHOWN = {
    "/": "dashboard", "/jobs": "jobs", "/jobs/new?dataset=drawings": "new_form",
    "/jobs/new?dataset=drawings&view=yaml": "new_yaml", "/datasets": "datasets",
    "/datasets/drawings": "dataset", "/evaluations": "evaluations", "/settings": "settings",
    "/login": "login", "/jobs/new": "new", "/datasets/drawings/evaluate": "evaluate",
    "/datasets/drawings/picture/000005.png": "picture", "/datasets/drawings/duplicates": "duplicates",
    "/datasets/drawings/replace?find=red&replace=blue": "replace", "/trash": "trash", "/docs": "api",
}  # fmt: skip
# Those shown on a phone too.
NARROW = {"dashboard", "jobs", "new_form", "dataset", "evaluation", "job", "pictures"}
TALLEST = 1400  # pixels of a page that a picture shows
PICTURES = Path(__file__).parents[2] / "docs" / "images" / "web"
RUN = """async (rules) => (await axe.run(document, {runOnly: rules})).violations.map(
  (each) => `${each.id}: ${each.help}: ` + each.nodes.map((node) => node.html.slice(0, 160)).join(" | ")
)"""
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

WIDEST = """() => [...document.querySelectorAll("#content *")].filter(
  (each) => each.getBoundingClientRect().right > document.documentElement.clientWidth
).map((each) => each.outerHTML.slice(0, 80)).slice(0, 4)"""


def pages_of_jobs(page: Any) -> Iterator[str]:
    """The pages of the newest completed job of each kind; of a draft where the flows have left none."""
    jobs = page.request.get("/api/jobs").json()["jobs"]
    if not jobs:
        made = page.request.post("/api/jobs", data={"config_yaml": "job: train\nconfig: {name: one}"})
        jobs = [made.json()]
    oldest_first = sorted(jobs, key=lambda job: (job["status"] == "completed", job["created_at"]))
    for job in {job["kind"]: job for job in oldest_first}.values():
        yield from (f"/jobs/{job['id']}{part}" for part in OF_A_JOB)
        yield f"/compare?job={job['id']}"
        yield from viewers(page, job["id"])
    for item in page.request.get("/api/eval_dataset").json()["jobs"][:1]:
        yield f"/evaluations/{item['id']}"


def viewers(page: Any, job_id: str) -> Iterator[str]:
    """The newest picture of a job alone, and with that of the step before laid over it; none without any."""
    answer = page.request.get(f"/api/jobs/{job_id}/samples?limit=2")
    *earlier, last = answer.json()["steps"] if answer.ok and answer.json()["steps"] else [None]
    if last is not None:
        place = f"/jobs/{job_id}/samples/view?step={last['step']}&prompt={last['samples'][0]['prompt_index']}"
        yield place
        yield from (f"{place}&against={step['step']}" for step in earlier)


def names_of(paths: list[str], page: Any) -> dict[str, str]:
    """The pages to take pictures of, by path: SHOWN, the newest training, drawn pictures, the evaluation."""
    named = dict(SHOWN)
    listed = page.request.get("/api/jobs").json()["jobs"]
    named |= {f"/jobs/{job['id']}/samples": "pictures" for job in listed if job["kind"] == "generate"}
    for job in listed:
        if job["kind"] == "train" and job["status"] == "completed":
            named |= {f"/jobs/{job['id']}{part}": f"job{part.replace('/', '_')}" for part in OF_A_JOB}
            named[f"/compare?job={job['id']}"] = "compare"
            alone = f"/jobs/{job['id']}/samples/view?"
            named |= {path: "job_sample" for path in paths if path.startswith(alone)}
            break
    return named | {path: "evaluation" for path in paths if path.startswith("/evaluations/")}


def take_picture(page: Any, name: str) -> None:
    """Write the upper part of the page, as WebP."""
    page.wait_for_timeout(500)  # curves and small pictures are drawn after the page has loaded
    PICTURES.mkdir(parents=True, exist_ok=True)
    shown = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    shown.crop((0, 0, shown.width, min(shown.height, TALLEST))).save(
        PICTURES / f"{name}.webp", quality=80, method=6
    )


def name_at_length(page: Any, folder: Path) -> list[str]:
    """Pages that show names as long as they may be: of pictures, and of a job that can be compared."""
    folder.mkdir(exist_ok=True)
    for stem in ("one " * 16 + "x", "n" * 64, "m" * 200):  # the same picture, so that they are duplicates too
        Image.new("RGB", (40, 30), "red").save(folder / f"{stem}.png")
        (folder / f"{stem}.txt").write_text("c" * 300)
    config = f"job: train\nconfig: {{name: {'j' * 100}, process: []}}\n"
    page.request.post("/api/jobs", data={"config_yaml": config})
    (job,) = page.request.get(f"/api/jobs?q={'j' * 100}").json()["jobs"]
    base = f"/datasets/{folder.name}"
    return [
        "/datasets", base, f"{base}/picture/{'m' * 200}.png", f"{base}/duplicates", f"{base}/evaluate",
        f"{base}/replace?find=c&replace=d", f"{base}/delete", f"/compare?job={job['id']}", "/", "/jobs",
        *(f"/jobs/{job['id']}{part}" for part in OF_A_JOB),
    ]  # fmt: skip


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_page_fits_and_is_accessible(browser, server, width, scheme):
    found = []
    with open_tab(browser, server, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        paths = [*PAGES, *pages_of_jobs(page)]
        pictures = names_of(paths, page) if os.environ.get("SCREENSHOTS") else {}
        for path in paths:
            answer = page.goto(path)
            assert answer.status == 200, path
            page.evaluate(AXE)
            found += [f"{path}: {violation}" for violation in page.evaluate(RUN, RULES)]
            if page.evaluate(WIDER) > 0:
                found.append(f"{path}: wider than its window")
            name = pictures.get(path)
            if name and width > 1000:
                take_picture(page, name)
            elif name in NARROW:
                take_picture(page, f"{name}_narrow")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("width", [1280, 390])
def test_long_names_fit(browser: Any, server: str, server_folder: Path, width: int) -> None:
    wide = []
    with open_tab(browser, server, viewport={"width": width, "height": 900}) as page:
        for path in name_at_length(page, server_folder / "datasets" / "long_names"):
            assert page.goto(path).status == 200, path
            if page.evaluate(WIDER) > 0:
                wide.append((path, page.evaluate(WIDEST)))
    assert not wide
