"""Jobs that write no run folder are followed and stopped all the same."""

from __future__ import annotations

import io
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from jobs.without_folder import Pictures
from testing.web.conftest import ROOT
from testing.web.live_queue import Queue
from testing.web.pages_support import ended_job, set_columns
from toolkit.runs.images import save_image
from web import actions
from web.launchers.attempt import AttemptFolder
from web.queue.jobs import Job
from web.services import Services

GENERATE = """\
job: generate
config:
  name: pictures
  process:
    - type: to_folder
      output_folder: {folder}
      model: {{name_or_path: tiny-sd}}
      generate: {{prompts: [a]}}
"""
PROGRAM = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from jobs.without_folder import watched
from toolkit.config_modules.loading import load_job
from toolkit.errors import JobStopped
try:
    with watched(load_job(sys.argv[1], "pictures"), total_steps=7) as watch:
        watch.status.phase("sampling", "Generating images - 0/7")
        watch.status.tick(3)
        while not watch.stop:
            time.sleep(0.01)
        raise JobStopped("stopped after 3 of 7 pictures")
except JobStopped:
    sys.exit(3)
"""


def test_its_progress_is_seen_and_a_stop_is_obeyed(settings, config, tmp_path):
    queue = Queue(replace(settings, command=(sys.executable, "-c", PROGRAM)), config)
    try:
        text = GENERATE.format(folder=tmp_path / "pictures")
        job = actions.create_job(queue.services, text, devices=["cpu:0"])
        assert actions.enqueue_job(queue.services, job.id).run_folders == ()
        queue.until(lambda: queue.get(job).step == 3)
        seen = queue.get(job)
        assert (seen.phase, seen.total_steps, seen.info) == ("sampling", 7, "Generating images - 0/7")
        with pytest.raises(Exception, match="no run yet that could obey"):
            actions.command_job(queue.services, job.id, "save")
        actions.stop_job(queue.services, job.id, "save")
        stopped = queue.until_status(job, "stopped")
        assert (stopped.reason, stopped.exit_code, stopped.step) == ("stopped after 3 of 7 pictures", 3, 3)
    finally:
        queue.close()


def drawn(services: Services, folder: Path, prompts: tuple[str, ...], attempt: int = 1) -> Job:
    """A job that has drawn its prompts, and shown them as `job: generate` does."""
    job = actions.create_job(services, GENERATE.format(folder=folder), devices=["cpu:0"])
    attempts = AttemptFolder(services.settings.jobs_root, job.id, attempt).path
    attempts.mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    pictures = Pictures(attempts)
    for number, prompt in enumerate(prompts):
        save_image(Image.new("RGB", (40, 30)), folder / f"{number}.png", {"prompt": prompt, "seed": 7})
        pictures.show(folder / f"{number}.png")
    return set_columns(services, job, status="completed", attempt=attempt, step=len(prompts))


def test_what_it_drew_is_shown(client, services, tmp_path):
    job = drawn(services, tmp_path / "pictures", ("a disk", "a <box>"))
    (tmp_path / "pictures" / "1.png").unlink()  # it has another name in the folder of the attempt
    base = f"/jobs/{job.id}"
    grid = client.get(f"{base}/samples").text
    assert "a disk" in grid and "a &lt;box&gt;" in grid and grid.count("?thumb=384") == 2
    overview = client.get(base).text
    assert overview.count("?thumb=384") == 2 and "Newest pictures" in overview
    assert [word in overview for word in ("/loss", "/files", "/config")] == [False, False, True]
    view = client.get(f"{base}/samples/view?step=0&prompt=1").text
    assert "Picture 2 of 2" in view and "a &lt;box&gt;" in view and 'data-key="ArrowLeft"' in view
    assert 'data-key="ArrowUp"' not in view and "Lay over it" not in view
    assert client.get(f"{base}/samples/view?step=0&prompt=2").status_code == 404
    listed = client.get(f"/api{base}/samples").json()["steps"]
    assert [sample["recipe"]["prompt"] for sample in listed[0]["samples"]] == ["a disk", "a <box>"]
    picture = client.get(listed[0]["samples"][1]["url"])
    assert Image.open(io.BytesIO(picture.content)).size == (40, 30)
    archive = zipfile.ZipFile(io.BytesIO(client.get(f"/api{base}/samples/archive").content))
    assert len(archive.namelist()) == 2


def test_only_what_the_last_attempt_drew_is_shown(client, services, tmp_path):
    job = drawn(services, tmp_path / "pictures", ("a disk",))
    set_columns(services, job, attempt=2)
    for page in (f"/jobs/{job.id}", f"/jobs/{job.id}/samples"):
        assert "thumb" not in client.get(page).text
    assert client.get(f"/api/jobs/{job.id}/samples").json() == {"steps": [], "more": False}
    for page in (f"/jobs/{job.id}/samples", f"/api/jobs/{job.id}/samples"):
        assert client.get(f"{page}?run=2").status_code == 404
    assert "is in the folder that the" in client.get(f"/jobs/{job.id}").text


def test_its_pictures_compare_with_the_previews_of_a_training(client, services, config, tmp_path):
    training = ended_job(services, config("foo"))
    job = drawn(services, tmp_path / "pictures", ("a blue square",))
    page = client.get("/compare", params={"job": [training.id, job.id], "step": 40}).text
    row = page[page.index("a blue square") :]
    assert f"/api/jobs/{training.id}/samples/" in row and f"/api/jobs/{job.id}/samples/" in row
