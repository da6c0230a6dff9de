"""Imported runs on pages and in the API, and the form that imports: what it shows and what it refuses."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from testing.web.conftest import BASE
from testing.web.foreign_kit import job_config, make_database, make_run, tree
from testing.web.pages_support import HTML
from web.app import create_app
from web.importing.service import import_ai_toolkit
from web.queue.jobs import Job
from web.queue.listing import JobQuery, list_jobs
from web.services import Services
from web.settings import WebSettings, from_environment


@pytest.fixture
def foreign(tmp_path) -> Path:
    """An ai-toolkit with a finished run in its database, and one that is in no database."""
    folder = tmp_path / "ai-toolkit"
    make_database(folder / "aitk_db.db", [{"name": "cat", "status": "completed", "step": 500}])
    make_run(folder / "output" / "cat", steps=(250, 500))
    make_run(folder / "output" / "dog", finished=False)
    return folder


@pytest.fixture
def opened(settings: WebSettings, foreign: Path) -> Iterator[TestClient]:
    """A client of a server whose users may import from that folder."""
    app = create_app(replace(settings, import_roots=(foreign,)))
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        yield client


def job_called(services: Services, name: str) -> Job:
    """The job of this name."""
    return next(job for job in list_jobs(services.database, JobQuery())[0] if job.name == name)


@pytest.fixture
def cat(services, foreign) -> Job:
    """The finished run, imported."""
    import_ai_toolkit(services, foreign)
    return job_called(services, "cat")


def test_every_page_of_an_imported_job_shows_its_run(client, cat, foreign):
    before = tree(foreign)
    pages = {
        "": ("completed", "finished in ai-toolkit", "step 1: loss 0.5", "cat.safetensors"),
        "/loss": ("<polyline",),
        "/samples": ("__000000500_1.jpg", "all as a zip file", "a blue square"),
        "/samples/view?step=500&prompt=1": ("__000000500_1.jpg", "<dd>a blue square</dd>"),
        "/files": ("cat_000000250.safetensors", "state of ai-toolkit&#39;s optimizer"),
        "/config": ("diffusion_trainer",),
        "/events": ("imported from",),
        "/edit": ("diffusion_trainer",),
        "/delete": ("are kept: they lie outside the folder of runs",),
    }
    for tab, texts in pages.items():
        page = client.get(f"/jobs/{cat.id}{tab}", headers=HTML)
        assert page.status_code == 200, tab
        for text in texts:
            assert text in page.text, (tab, text)
    assert tree(foreign) == before


def test_a_preview_of_which_nobody_says_how_it_was_made_is_shown(client, cat):
    (Path(cat.run_folder) / "config.yaml").unlink()
    page = client.get(f"/jobs/{cat.id}/samples/view?step=500&prompt=1", headers=HTML)
    assert page.status_code == 200 and "does not say how it was made" in page.text


def test_imported_runs_are_compared_by_the_prompts_of_their_configs(client, services, cat):
    dog = job_called(services, "dog")
    assert f'value="{dog.id}"' in client.get("/compare", headers=HTML).text
    page = client.get(f"/compare?job={cat.id}&job={dog.id}&step=250", headers=HTML).text
    for job in (cat, dog):
        assert f"/api/jobs/{job.id}/samples/1700000000250__000000250_1.jpg" in page
    compared = client.get(f"/api/metrics/compare?jobs={cat.id},{dog.id}").json()["series"]
    assert len(compared[dog.id]) == 251


def test_the_api_gives_away_the_files_of_an_imported_run(client, cat, foreign):
    before = tree(foreign)
    base = f"/api/jobs/{cat.id}"
    losses = client.get(f"{base}/loss").json()
    assert losses["keys"] == ["loss", "lr"] and losses["points"][1]["value"] == 0.5
    assert client.get(f"{base}/metrics").json()["series"]["lr"][0][2] == 1e-4
    assert "step 1: loss 0.5" in client.get(f"{base}/log").json()["text"]
    assert b"step 1: loss 0.5" in client.get(f"{base}/log/download").content
    files = {file["name"]: file["step"] for file in client.get(f"{base}/files").json()["files"]}
    assert files == {
        "cat.safetensors": None,
        "cat_000000250.safetensors": 250,
        "cat_000000500.safetensors": 500,
    }
    assert client.get(f"{base}/files/cat_000000500.safetensors").content == b"model 500"
    assert client.get(f"{base}/files/optimizer.pt").status_code == 404
    steps = client.get(f"{base}/samples").json()["steps"]
    assert [(step["step"], len(step["samples"])) for step in steps] == [(250, 2), (500, 2)]
    sample = steps[0]["samples"][0]
    assert client.get(sample["url"]).headers["content-type"] == "image/jpeg"
    assert client.get(sample["thumb_url"]).status_code == 200
    archive = zipfile.ZipFile(io.BytesIO(client.get(f"{base}/samples/archive").content))
    assert len(archive.namelist()) == 4
    assert tree(foreign) == before


def test_only_the_folder_that_was_imported_is_given_away(client, services, cat, foreign, tmp_path):
    base = f"/api/jobs/{cat.id}"
    run, moved = Path(cat.run_folder), tmp_path / "moved"
    run.rename(moved)
    run.symlink_to(moved)
    for path in ("files", "samples", "loss", "files/cat.safetensors"):
        assert client.get(f"{base}/{path}").status_code == 404, path
    run.unlink()
    moved.rename(run)
    assert client.get(f"{base}/files").status_code == 200
    with services.database.write() as tx:
        tx.connection.exec_driver_sql("DELETE FROM imports WHERE key LIKE 'folder:%'")
    assert client.get(f"{base}/files").status_code == 404
    assert client.get(f"{base}/log").json()["text"] == ""


def test_links_in_an_imported_run_lead_nowhere(client, cat, tmp_path):
    run = Path(cat.run_folder)
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret\n")
    (run / "log.txt").unlink()
    (run / "log.txt").symlink_to(secret)
    (run / "samples").rename(tmp_path / "samples")
    (run / "samples").symlink_to(tmp_path / "samples")
    (run / "cat.safetensors").unlink()
    (run / "cat.safetensors").symlink_to(secret)
    name = next(path.name for path in (tmp_path / "samples").iterdir())
    base = f"/api/jobs/{cat.id}"
    for path in (f"/jobs/{cat.id}", f"/jobs/{cat.id}/log", f"{base}/log"):
        assert "the secret" not in client.get(path).text
    assert client.get(f"{base}/log/download").status_code == 404
    assert client.get(f"{base}/samples").json()["steps"] == []
    assert client.get(f"{base}/samples/{name}").status_code == 404
    assert client.get(f"{base}/files/cat.safetensors").status_code == 404


def test_an_imported_run_is_never_deleted(client, cat, foreign):
    assert client.delete(f"/api/jobs/{cat.id}?files=delete").status_code == 409
    assert client.delete(f"/api/jobs/{cat.id}").status_code == 204
    assert (foreign / "output" / "cat" / "cat.safetensors").is_file()


def test_the_form_looks_first_and_then_imports(opened, foreign):
    page = opened.get("/settings", headers=HTML).text
    assert 'action="/settings/import"' in page and str(foreign) in page
    look = opened.post("/settings/import", data={"path": str(foreign), "action": "look"}, headers=HTML)
    assert (
        look.status_code == 200 and "What would be imported" in look.text and "2 jobs to import" in look.text
    )
    assert opened.get("/api/jobs").json()["jobs"] == []
    done = opened.post("/settings/import", data={"path": str(foreign), "action": "import"}, headers=HTML)
    found = {job["name"]: job for job in opened.get("/api/jobs").json()["jobs"]}
    assert set(found) == {"cat", "dog"} and found["dog"]["status"] == "stopped"
    assert f'href="/jobs/{found["cat"]["id"]}"' in done.text and "training_folder" in done.text
    again = opened.post("/settings/import", data={"path": str(foreign), "action": "import"}, headers=HTML)
    assert "0 jobs imported, 2 left out" in again.text


@pytest.mark.parametrize(
    ("data", "says"),
    [({"path": ""}, "give a folder of the server"), ({"path": "/etc"}, "lies outside the folders"),
     ({"path": "{foreign}/none"}, "is no folder"),
     ({"path": "{foreign}", "db": "/etc/passwd"}, "lies outside"),
     ({"path": "{foreign}", "db": "{foreign}/output/cat/log.txt"}, "is no SQLite database"),
     ({"path": "\x00"}, "is no path")],
)  # fmt: skip
def test_the_form_keeps_what_was_given_and_says_what_is_wrong(opened, foreign, data, says):
    given = {key: value.format(foreign=foreign) for key, value in data.items()}
    page = opened.post("/settings/import", data={**given, "action": "import"}, headers=HTML)
    assert page.status_code == 422 and says in page.text and "<h1>Settings</h1>" in page.text
    assert opened.get("/api/jobs").json()["jobs"] == []


def test_the_page_shows_what_others_wrote_as_text(opened, foreign):
    evil = "<script>alert(1)</script>"
    (foreign / "aitk_db.db").unlink()
    row = {"name": evil, "info": evil, "status": "error", "job_config": {**job_config(evil), evil: evil}}
    make_database(foreign / "aitk_db.db", [row], settings={"TRAINING_FOLDER": evil})
    page = opened.post("/settings/import", data={"path": str(foreign), "action": "import"}, headers=HTML).text
    assert evil not in page and "&lt;script&gt;" in page
    for job in opened.get("/api/jobs").json()["jobs"]:
        assert evil not in opened.get(f"/jobs/{job['id']}", headers=HTML).text


def test_the_api_imports_and_says_what_became_of_each(opened, foreign):
    body = {"path": str(foreign), "dry_run": True}
    looked = opened.post("/api/import/ai-toolkit", json=body).json()
    assert looked["num_imported"] == 2 and [job["id"] for job in looked["jobs"]] == [None, None]
    done = opened.post("/api/import/ai-toolkit", json={**body, "dry_run": False}).json()
    cat = next(job for job in done["jobs"] if job["origin"] == "cat")
    assert cat["status"] == "completed" and cat["folder"] == str(foreign / "output" / "cat")
    assert cat["problems"][0]["code"] == "web.run_folder"
    assert opened.get(f"/api/jobs/{cat['id']}").json()["step"] == 500
    again = opened.post("/api/import/ai-toolkit", json={**body, "dry_run": False}).json()
    assert again["num_imported"] == 0 and again["jobs"][0]["reason"] == "it was imported before, as cat"


def test_the_api_says_nothing_of_what_lies_elsewhere(client, foreign):
    told = {
        client.post("/api/import/ai-toolkit", json={"path": str(path)}).json()["errors"][0]["code"]
        for path in (foreign, foreign / "none", "/etc/passwd", "/root/.ssh")
    }
    assert told == {"import.outside"}


def test_an_imported_config_can_be_put_right_and_queued(opened, foreign, config):
    opened.post("/api/import/ai-toolkit", json={"path": str(foreign)})
    dog = next(job for job in opened.get("/api/jobs").json()["jobs"] if job["name"] == "dog")
    assert opened.post(f"/api/jobs/{dog['id']}/enqueue").status_code == 422
    before = tree(foreign)
    assert opened.put(f"/api/jobs/{dog['id']}", json={"config_yaml": config("dog")}).status_code == 200
    queued = opened.post(f"/api/jobs/{dog['id']}/enqueue", json={"start_queue": False})
    assert queued.status_code == 202 and queued.json()["status"] == "queued"
    assert tree(foreign) == before


def test_the_environment_names_the_folders_to_import_from(tmp_path):
    import os

    text = os.pathsep.join([str(tmp_path / "a"), "", f"{tmp_path}/b/../c"])
    given = {"AI_TOOLKIT_IMPORT_ROOTS": text, "AI_TOOLKIT_DEVICES": "cpu:0"}
    assert from_environment(given).import_roots == (tmp_path / "a", tmp_path / "c")
    assert from_environment({"AI_TOOLKIT_DEVICES": "cpu:0"}).import_roots == ()
