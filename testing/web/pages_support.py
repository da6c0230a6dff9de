"""Jobs as pages find them: some that wait, one that runs, one that has a run with pictures."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image
from sqlalchemy import insert, update

from toolkit.runs.images import save_image
from toolkit.runs.layout import RunFolder
from web import actions
from web.queue.jobs import Job
from web.schema import jobs, leases
from web.services import Services

HTML = {"Accept": "text/html,application/xhtml+xml"}
HTMX = {**HTML, "HX-Request": "true"}
EVIL = "<script>alert(1)</script>"


def write_run(
    folder: Path, steps: int = 40, prompts: tuple[str, ...] = ("a red circle", "a blue square")
) -> None:
    """A run folder with metrics, a log, previews at two steps, a model and a state."""
    run = RunFolder(folder.parent, folder.name)
    run.create()
    rows = [{"schema_version": 1}]
    rows += [{"attempt": 1, "step": step, "time": 1000.0 + step, "loss": 1 / step, "lr": 1e-4}
             for step in range(1, steps + 1)]  # fmt: skip
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.log_path.write_text("Loading model\nTraining\n")
    for step in (0, steps):
        for number, prompt in enumerate(prompts):
            recipe = {"prompt": prompt, "seed": 7 + number, "step": step}
            save_image(
                Image.new("RGB", (8, 8)), run.samples / run.sample_name(5 + step, step, number, "png"), recipe
            )
    (run.path / run.final_name()).write_bytes(b"model")
    state = run.checkpoints / f"step_{steps:09d}"
    state.mkdir(exist_ok=True)
    (state / "manifest.json").write_text("{}")


def set_columns(services: Services, job: Job, **values: Any) -> Job:
    """Set columns of a job, as the supervisor would."""
    with services.database.write() as tx:
        tx.execute(update(jobs).where(jobs.c.id == job.id).values(**values))
    return services.store.get(job.id)


def running_job(services: Services, text: str, device: str = "gpu:0") -> Job:
    """A job that runs as far as the database knows, with a run folder."""
    job = actions.create_job(services, text, devices=[device])
    job = actions.enqueue_job(services, job.id)
    assert job.run_folder is not None
    write_run(Path(job.run_folder))
    with services.database.write() as tx:
        tx.execute(insert(leases).values(device=device, job_id=job.id, attempt=1, since=time.time()))
    return set_columns(
        services, job, status="running", attempt=1, started_at=time.time(), step=12, total_steps=40,
        phase="training", speed=2.5, eta_s=75.0, loss=0.25,
    )  # fmt: skip


def ended_job(services: Services, text: str, status: str = "completed", **values: Any) -> Job:
    """A job that has ended, with a run folder."""
    job = actions.enqueue_job(services, actions.create_job(services, text, devices=["gpu:1"]).id)
    assert job.run_folder is not None
    write_run(Path(job.run_folder))
    return set_columns(services, job, **{"status": status, "attempt": 1, "started_at": time.time(), **values})


class _Inputs(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, list[str]] = {}
        self._select: str | None = None
        self._options: list[tuple[str, bool]] = []
        self._area: str | None = None
        self._option: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        name = given.get("name")
        if tag == "input" and name and (given.get("type") not in ("checkbox", "radio") or "checked" in given):
            self.values.setdefault(name, []).append(given.get("value") or "")
        elif tag == "select":
            self._select, self._options = name, []
        elif tag == "option" and self._select:
            self._options.append((given.get("value", "\0") or "", "selected" in given))
        elif tag == "textarea":
            self._area = name
            self.values[name or ""] = [""]

    def handle_data(self, data: str) -> None:
        if self._area is not None:
            self.values[self._area][0] += data
        elif self._select and self._options and self._options[-1][0] == "\0":
            self._options[-1] = (data, self._options[-1][1])

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self._area is not None:
            self.values[self._area][0] = self.values[self._area][0].removeprefix("\n")
            self._area = None
        elif tag == "select" and self._select:
            chosen = [value for value, selected in self._options if selected] or [self._options[0][0]]
            self.values[self._select] = chosen[:1]
            self._select = None


def inputs(page: str) -> dict[str, Any]:
    """What a browser would send of the page's form with the id `editor`, without any script."""
    form = re.search(r'<form[^>]*id="editor".*?</form>', page, re.DOTALL)
    assert form, page[:2000]
    parser = _Inputs()
    parser.feed(form[0])
    return parser.values
