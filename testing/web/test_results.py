"""Logs, metrics, previews and models of a job, read over the API."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from toolkit.runs.images import save_image
from toolkit.runs.metrics import MetricsWriter, read_metrics
from web import models
from web.launchers.attempt import AttemptFolder
from web.runs.logs import read_slice
from web.runs.metrics_index import MetricsIndex
from web.runs.series import extremes


@pytest.fixture
def job(client, services, config) -> dict:
    """A job that has been claimed, with the folder of its run."""
    made = client.post("/api/jobs", json={"config_yaml": config()}).json()
    client.post(f"/api/jobs/{made['id']}/enqueue")
    claimed = services.lanes.claim()
    folder = Path(claimed.run_folders[0])
    (folder / "samples").mkdir(parents=True)
    AttemptFolder(services.settings.jobs_root, made["id"], 1).path.mkdir(parents=True)
    return {**made, "folder": folder, "path": f"/api/jobs/{made['id']}"}


def output_of(services, job) -> Path:
    """What the first attempt printed."""
    return AttemptFolder(services.settings.jobs_root, job["id"], 1).output_path


# -- the log ----------------------------------------------------------------------------------------


def test_the_log_is_read_on_from_where_it_was_left(client, services, job):
    path = output_of(services, job)
    assert client.get(f"{job['path']}/log").json() == {
        "text": "",
        "offset": 0,
        "reset": False,
        "eof": False,
        "attempt": 1,
    }
    path.write_bytes("first\nsécond\nhalf".encode())
    one = client.get(f"{job['path']}/log").json()
    models.LogOut.model_validate(one)
    assert one["text"] == "first\nsécond\n" and not one["eof"]
    with path.open("ab") as file:
        file.write(b" a line\n")
    two = client.get(f"{job['path']}/log", params={"offset": one["offset"]}).json()
    assert two["text"] == "half a line\n" and not two["reset"]
    path.write_text("new\n")
    again = client.get(f"{job['path']}/log", params={"offset": two["offset"]}).json()
    assert (again["text"], again["reset"]) == ("new\n", True)
    services.store.finish(services.store.get(job["id"]), "failed", "x")
    assert client.get(f"{job['path']}/log").json()["eof"]


def test_a_long_log_comes_in_pieces_that_join(tmp_path):
    path = tmp_path / "output.txt"
    text = "".join(f"line {number} ünïcode\n" for number in range(2000))
    path.write_text(text)
    joined, offset = "", 0
    while True:
        piece = read_slice(path, offset, 1000)
        joined, offset = joined + piece.text, piece.offset
        if piece.at_end and offset == len(text.encode()):
            break
        assert piece.text
    assert joined == text
    tail = read_slice(path, None, 1000)
    assert text.endswith(tail.text) and tail.text.startswith("line ") and len(tail.text.encode()) > 900


def test_progress_bars_leave_their_last_state(tmp_path):
    path = tmp_path / "output.txt"
    path.write_bytes(b"a\r\n\x1b[31m 1%\r 50%\r100%\x1b[0m\nend\n")
    assert read_slice(path, 0).text == "a\n100%\nend\n"


def test_one_endless_line_does_not_stop_the_log(tmp_path):
    path = tmp_path / "output.txt"
    path.write_bytes(b"x" * 5000)
    piece = read_slice(path, 0, 1000)
    assert (len(piece.text), piece.offset) == (1000, 1000)


def test_the_log_can_be_saved_as_a_file(client, services, job):
    assert client.get(f"{job['path']}/log/download").status_code == 404
    output_of(services, job).write_text("<script>alert(1)</script>\n")
    response = client.get(f"{job['path']}/log/download")
    assert response.text == "<script>alert(1)</script>\n"
    assert response.headers["content-disposition"].startswith("attachment")
    assert "sandbox" in response.headers["content-security-policy"]


# -- metrics ----------------------------------------------------------------------------------------


def rows_of(path: Path, key: str) -> list[tuple[int, float | None]]:
    """The same series by the toolkit's own reader."""
    return [(row["step"], row[key]) for row in read_metrics(path) if key in row]


def test_the_index_says_what_the_toolkits_reader_says(tmp_path):
    path = tmp_path / "metrics.jsonl"
    index = MetricsIndex(path)
    index.refresh()
    assert index.keys == []
    for attempt, steps in enumerate([range(1, 50), range(30, 60), range(20, 40), range(41, 45)], start=1):
        with MetricsWriter(path) as writer:
            for step in steps:
                value = float("nan") if step == 33 else attempt + step / 1000
                writer.write(step, loss=value, lr=1e-4)
                if step % 10 == 0:
                    writer.write(step, validation=value)
                if step % 7 == 0:
                    writer.flush()
                    index.refresh()
        with path.open("ab") as file:
            file.write(b'{"attempt": 9, "step": 1, "lo')  # torn by a crash, cut off by the next writer
        index.refresh()
        for key in ("loss", "lr", "validation"):
            assert [(step, value) for step, _, value in index.points(key)] == rows_of(path, key), (
                attempt,
                key,
            )
    fresh = MetricsIndex(path)
    fresh.refresh()
    assert fresh.points("loss") == index.points("loss") and index.generation == 2


def test_metrics_come_over_the_api_from_a_step_on(client, job):
    with MetricsWriter(job["folder"] / "metrics.jsonl") as writer:
        for step in range(1, 11):
            writer.write(step, loss=step / 10, grad_norm=1.0)
    body = client.get(f"{job['path']}/metrics", params={"keys": "loss,nothing", "since_step": 8}).json()
    models.MetricsOut.model_validate(body)
    assert [point[0] for point in body["series"]["loss"]] == [9, 10] and body["series"]["nothing"] == []
    assert body["keys"] == ["grad_norm", "loss"]
    old = client.get(f"{job['path']}/loss", params={"stride": 3, "limit": 2}).json()
    models.LossOut.model_validate(old)
    assert [point["step"] for point in old["points"]] == [7, 10]
    compared = client.get("/api/metrics/compare", params={"jobs": job["id"], "key": "loss"}).json()
    assert len(compared["series"][job["id"]]) == 10
    assert client.get("/api/metrics/compare", params={"jobs": "a,b,c,d,e"}).status_code == 422
    assert client.get("/api/metrics/compare", params={"jobs": "nothing"}).status_code == 404


def test_thinning_out_keeps_the_extremes():
    import numpy as np

    values = np.sin(np.arange(100_000) / 50.0)
    values[54_321], values[77_777], values[10_000:10_400] = 9.0, -9.0, np.nan
    chosen = extremes(values, 2000)
    assert len(chosen) <= 2000 and (np.diff(chosen) > 0).all()
    assert 54_321 in chosen and 77_777 in chosen and chosen[-1] == 99_999


def test_many_points_are_thinned_out(client, job):
    lines = [
        json.dumps({"attempt": 1, "step": step, "time": step, "loss": step % 97}) for step in range(30_000)
    ]
    (job["folder"] / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    points = client.get(f"{job['path']}/metrics", params={"max_points": 500}).json()["series"]["loss"]
    assert 400 < len(points) <= 500 and max(point[2] for point in points) == 96


# -- pictures and models ----------------------------------------------------------------------------


def add_sample(job: dict, step: int, index: int, ms: int, size: int = 64) -> str:
    """A preview as a run writes it."""
    name = f"{ms}__{step:09d}_{index}.jpg"
    save_image(Image.new("RGB", (size, size), "red"), job["folder"] / "samples" / name,
               {"prompt": f"<b>prompt</b> {index}", "seed": 42 + index})  # fmt: skip
    return name


def test_previews_are_listed_by_step_with_their_recipes(client, job):
    names = [add_sample(job, step, index, 1000 + step + index) for step in (0, 5, 10) for index in (0, 1)]
    add_sample(job, 10, 1, 500)  # an older one of the same step and prompt
    (job["folder"] / "samples" / "notes.txt").write_text("x")
    body = client.get(f"{job['path']}/samples").json()
    models.SampleList.model_validate(body)
    assert [step["step"] for step in body["steps"]] == [0, 5, 10] and not body["more"]
    assert [sample["name"] for sample in body["steps"][2]["samples"]] == names[4:]
    assert body["steps"][0]["samples"][1]["recipe"] == {"prompt": "<b>prompt</b> 1", "seed": 43}
    cut = client.get(f"{job['path']}/samples", params={"limit": 1, "before_step": 10, "prompt": 1}).json()
    assert [(s["step"], len(s["samples"])) for s in cut["steps"]] == [(5, 1)] and cut["more"]
    picture = client.get(body["steps"][0]["samples"][0]["url"])
    assert picture.headers["content-type"] == "image/jpeg" and picture.headers[
        "content-disposition"
    ].startswith("inline")
    small = client.get(body["steps"][0]["samples"][0]["thumb_url"].replace("256", "32"))
    with Image.open(io.BytesIO(small.content)) as image:
        assert image.format == "WEBP" and image.size == (32, 32) and not image.getexif()


def test_previews_can_be_saved_as_a_zip(client, job):
    assert client.get(f"{job['path']}/samples/archive").status_code == 409
    names = [add_sample(job, step, 0, step) for step in (1, 2)]
    response = client.get(f"{job['path']}/samples/archive")
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.namelist() == names and archive.testzip() is None
        assert archive.read(names[0]) == (job["folder"] / "samples" / names[0]).read_bytes()


def test_models_are_listed_and_fetched_in_parts(client, job):
    for name in ("small.safetensors", "small_000000250.safetensors", "small_000000500.safetensors", "emb.pt"):
        (job["folder"] / name).write_bytes(b"0123456789")
    (job["folder"] / "config.yaml").write_text("secret: none")
    (job["folder"] / ".hidden.safetensors").write_bytes(b"x")
    files = client.get(f"{job['path']}/files").json()
    models.FileList.model_validate(files)
    listed = [(file["name"], file["step"], file["size"]) for file in files["files"]]
    assert listed == [
        ("emb.pt", None, 10),
        ("small.safetensors", None, 10),
        ("small_000000500.safetensors", 500, 10),
        ("small_000000250.safetensors", 250, 10),
    ]
    # fmt: skip
    part = client.get(files["files"][1]["url"], headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    assert part.headers["content-disposition"].startswith("attachment")
    for name in ("config.yaml", ".hidden.safetensors", "nothing.safetensors"):
        assert client.get(f"{job['path']}/files/{name}").status_code == 404


def test_deleting_a_job_keeps_its_run_unless_told_otherwise(client, services, config, job):
    folder = job["folder"]
    assert client.delete(job["path"]).status_code == 409
    services.store.finish(services.store.get(job["id"]), "completed", "x")
    target = folder.parent / "precious"
    target.mkdir()
    (target / "keep.txt").write_text("x")
    (folder / "link").symlink_to(target)
    assert client.delete(job["path"], params={"files": "delete"}).status_code == 204
    assert not folder.exists() and (target / "keep.txt").exists()
    assert not (services.settings.jobs_root / job["id"]).exists()
    second = client.post("/api/jobs", json={"config_yaml": config("second")}).json()
    client.post(f"/api/jobs/{second['id']}/enqueue")
    client.post(f"/api/jobs/{second['id']}/dequeue")
    (folder.parent / "second").mkdir()
    assert client.delete(f"/api/jobs/{second['id']}").status_code == 204
    assert (folder.parent / "second").exists()


def test_a_run_folder_that_another_job_writes_too_is_not_deleted(client, services, config, tmp_path):
    text = config("first").replace("      device: cpu", "      name: shared\n      device: cpu")
    ids = []
    for name in ("first", "second"):
        made = client.post(
            "/api/jobs", json={"config_yaml": text.replace("name: first", f"name: {name}", 1)}
        ).json()
        client.post(f"/api/jobs/{made['id']}/enqueue")
        client.post(f"/api/jobs/{made['id']}/dequeue")
        ids.append(made["id"])
    (tmp_path / "output" / "shared").mkdir(parents=True)
    refused = client.delete(f"/api/jobs/{ids[0]}", params={"files": "delete"})
    assert refused.status_code == 409 and "second" in refused.json()["error"]
    assert (tmp_path / "output" / "shared").exists()
