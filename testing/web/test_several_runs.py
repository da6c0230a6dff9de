"""A job whose config has several processes: the pages and files of each run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from testing.web.pages_support import HTML, ended_job, set_columns, write_run


@pytest.fixture
def job(services, config, tmp_path):
    """A job with two runs; the second is shorter and has one prompt more."""
    job = ended_job(services, config())
    second = Path(job.run_folders[0]).parent / "second"
    write_run(second, steps=20, prompts=("one", "two", "three"))
    folders = f'["{job.run_folders[0]}", "{second}"]'
    return set_columns(services, job, run_folders=folders)


def links(text: str) -> set[str]:
    """Everything that a page refers to."""
    return {
        link.replace("&amp;", "&") for link in re.findall(r'(?:href|src|data-source|hx-get)="([^"]+)"', text)
    }


def test_each_run_has_its_pages_and_they_refer_to_its_files(client, job):
    for tab in ("", "/loss", "/samples", "/files", "/samples/view?step=20&prompt=2"):
        mark = "&run=2" if "?" in tab else "?run=2"
        page = client.get(f"/jobs/{job.id}{tab}{mark}", headers=HTML)
        assert page.status_code == 200, tab
        for link in links(page.text):
            if re.search(rf"/jobs/{job.id}/(samples|files|metrics|loss)", link) and "archive" not in link:
                assert "run=2" in link or link in {
                    f"/jobs/{job.id}/{part}" for part in ("loss", "samples", "files")
                }
                answer = client.get(link, headers={"Accept": "*/*"})
                assert answer.status_code == 200, link


def test_the_first_run_is_shown_unless_another_is_asked_for(client, job):
    text = client.get(f"/jobs/{job.id}/samples", headers=HTML).text
    assert "Runs of this job" in text
    assert f'href="/jobs/{job.id}/samples?run=2"' in text
    assert "a red circle" in text and "three" not in text
    assert "run=2" not in client.get(f"/api/jobs/{job.id}/samples").text
    other = client.get(f"/jobs/{job.id}/samples?run=2", headers=HTML).text
    assert "three" in other and "a red circle" not in other


def test_the_api_gives_the_run_that_is_asked_for(client, job):
    assert len(client.get(f"/api/jobs/{job.id}/metrics?keys=loss").json()["series"]["loss"]) == 40
    assert len(client.get(f"/api/jobs/{job.id}/metrics?keys=loss&run=2").json()["series"]["loss"]) == 20
    assert client.get(f"/api/jobs/{job.id}/loss?run=2").json()["points"][-1]["step"] == 20
    steps = client.get(f"/api/jobs/{job.id}/samples?run=2").json()["steps"]
    for sample in steps[-1]["samples"]:
        assert client.get(sample["url"]).status_code == client.get(sample["thumb_url"]).status_code == 200
    (file,) = client.get(f"/api/jobs/{job.id}/files?run=2").json()["files"]
    assert file["name"] == "second.safetensors"
    assert client.get(file["url"]).content == b"model"
    assert client.get(f"/api/jobs/{job.id}/samples/archive?run=2").status_code == 200


def test_a_run_that_is_not_there_is_told(client, job):
    for path in (f"/api/jobs/{job.id}/metrics?run=3", f"/api/jobs/{job.id}/files?run=3"):
        assert client.get(path).status_code == 404
    assert client.get(f"/jobs/{job.id}/loss?run=3", headers=HTML).status_code == 404
    assert client.get(f"/jobs/{job.id}/loss?run=0", headers=HTML).status_code == 422


def test_a_job_with_one_run_has_no_choice(client, services, config):
    job = ended_job(services, config())
    assert "Runs of this job" not in client.get(f"/jobs/{job.id}", headers=HTML).text
