"""What is sent to break in. The numbers are those of the table in docs/security.md."""

from __future__ import annotations

import asyncio
import io
import socket
import struct
import time
import zlib
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from toolkit.runs.layout import bad_name
from web.configs import bad_job_name, check_config
from web.doorbell import MOST_NAMES, MOST_PER_CLIENT, MOST_STREAMS, RESYNC, Doorbell, Subscriber
from web.environment import is_secret_name, job_environment
from web.problems import ApiError

# -- 1, 3: paths and links --------------------------------------------------------------------------

PATHS = [
    "..", "../x", "%2e%2e/x", "..%2fx", "%252e%252e%252fx", "..%5cx", "/etc/passwd", "//etc/passwd",
    "%2fetc%2fpasswd",
    "C:%5Cx", "C:/x", "a%00b", "./x", "a/./b", "a//b", "cats/../../secret.txt", "%2e", "a" * 5000,
    "x/" * 500 + "x",
    ".hidden", "cats/.hidden", "~/x", "\\\\server\\share", "cats%0d%0aX: y", "%c0%ae%c0%ae/x", "cats/1.png/",
]  # fmt: skip


@pytest.fixture
def files(client, tmp_path) -> Path:
    """A folder of datasets with a picture, and things around it that nobody may reach."""
    datasets = tmp_path / "datasets"
    (datasets / "cats").mkdir(parents=True)
    Image.new("RGB", (40, 20), "red").save(datasets / "cats" / "1.png")
    (tmp_path / "datasets-evil").mkdir()
    for place in (tmp_path, tmp_path / "datasets-evil", datasets / "cats" / ".hidden"):
        place.mkdir(exist_ok=True)
        (place / "secret.txt").write_text("the secret")
    return datasets


def ask(client, path: str) -> tuple[int, str]:
    """(status, body) of GET for exactly this path: a client of HTTP would tidy it up first."""
    answer: dict = {"body": b""}
    scope = {
        "type": "http", "method": "GET", "path": unquote(path), "raw_path": path.encode(),
        "query_string": b"", "headers": [(b"host", b"localhost")], "root_path": "", "scheme": "http",
        "client": ("test", 1), "server": ("localhost", 80), "http_version": "1.1", "asgi": {"version": "3.0"},
        "extensions": {}, "state": {},
    }  # fmt: skip

    async def receive():
        if answer.get("asked"):
            await asyncio.sleep(30)  # the client stays until it has everything
        answer["asked"] = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        answer["status"] = message.get("status", answer.get("status"))
        answer["body"] += message.get("body", b"")

    asyncio.run(client.app(scope, receive, send))
    return answer["status"], answer["body"].decode("utf-8", "replace")


def test_1_no_path_leads_out(client, files):
    for route in ("/api/files/datasets/", "/api/img/datasets/", "/static/"):
        for path in [
            *PATHS,
            "../datasets-evil/secret.txt",
            "%2e%2e/datasets-evil/secret.txt",
            "-evil/secret.txt",
        ]:
            status, body = ask(client, route + path)
            assert status in (400, 404), (route, path, status, body)
            assert "the secret" not in body and "root:" not in body
    assert ask(client, "/api/files/datasets/cats/1.png")[0] == 200
    assert ask(client, "/api/files/datasets-evil/secret.txt")[0] == 422


def test_1_roots_are_named_and_nothing_else(client, files):
    for root in ("data", "..", "etc", "%2e%2e", "DATASETS", ""):
        assert ask(client, f"/api/files/{root}/cats/1.png")[0] in (404, 422)


def test_1_files_of_a_job_are_its_own(client, services, config):
    job = client.post("/api/jobs", json={"config_yaml": config()}).json()
    client.post(f"/api/jobs/{job['id']}/enqueue")
    folder = Path(services.store.get(job["id"]).run_folders[0])
    (folder / "samples").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("the secret")
    (folder.parent / "x").write_text("the secret")
    for path in [*PATHS, "..%2f..%2fdata%2fweb.sqlite", "metrics.jsonl", "../metrics.jsonl"]:
        for address in (
            f"{job['id']}/samples/{path}",
            f"{job['id']}/files/{path}",
            f"{path}/files",
            f"{path}/log",
        ):
            status, body = ask(client, f"/api/jobs/{address}")
            assert status in (400, 404, 405) and "the secret" not in body, (address, status)


def test_3_links_are_not_followed(client, files, tmp_path):
    (files / "cats" / "link.png").symlink_to(tmp_path / "secret.txt")
    (files / "away").symlink_to(tmp_path / "datasets-evil")
    for path in ("cats/link.png", "away/secret.txt"):
        assert client.get(f"/api/files/datasets/{path}").status_code == 404
        assert client.get(f"/api/img/datasets/{path}").status_code == 404


# -- 2, 18: names -----------------------------------------------------------------------------------


@given(st.text(max_size=120))
def test_2_an_accepted_name_is_one_folder_below_its_parent(name):
    if bad_job_name(name) is None:
        assert (Path("/root") / name).resolve().parent == Path("/root") and bad_name(name) is None
        assert not name.startswith(("-", ".")) and not set(name) & set("/\\:*?\"<>|$;`&\n\r\0'")


BAD_NAMES = [
    "", ".", "..", "../x", "a/b", "a\\b", "CON", "nul.txt", "x.", "x ", " x", "-rf", "$(touch x)", ";id",
    "a\nb", "a\0b",
    "x" * 101, "_controls", "é" * 80, "a:b",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_2_such_names_are_refused(client, name):
    assert bad_job_name(name) is not None
    response = client.post("/api/jobs", json={"name": name, "config_yaml": "job: train"})
    assert response.status_code == 422 and client.get("/api/jobs").json()["jobs"] == []


@pytest.mark.parametrize("name", ["a", "cat 1", "my_lora-v1.2", "2026", "Ünïcödé", "x_", "x-", "猫"])
def test_2_such_names_are_taken(name):
    assert bad_job_name(name) is None


# -- 8: YAML ----------------------------------------------------------------------------------------


def bomb(levels: int) -> str:
    """A few lines whose aliases stand for 10 ** levels values."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize("text", [
    bomb(9), "a: &a [*a, *a]", "[" * 3000, "x: " + "y" * 300_000, "&a {b: *a}", "{" * 900 + "}" * 900,
])  # fmt: skip
def test_8_yaml_that_swells_is_refused_at_once(client, text):
    start = time.process_time()
    found = check_config(text)
    assert found.problems and time.process_time() - start < 5  # and not the hours that a bomb takes
    assert client.post("/api/config/validate", json={"config_yaml": text}).json()["ok"] is False


@pytest.mark.parametrize("text", [
    "!!python/object/apply:os.system ['touch /tmp/pwned']", "x: !!python/name:os.system",
    "!!python/module:os",
    "job: !!python/object/new:subprocess.Popen [[touch, /tmp/pwned]]",
])  # fmt: skip
def test_8_yaml_makes_nothing_but_data(client, text):
    body = client.post("/api/config/validate", json={"config_yaml": text}).json()
    assert body["ok"] is False and body["errors"][0]["code"] == "config.syntax"
    assert not Path("/tmp/pwned").exists()


@pytest.mark.parametrize(
    "name", ["AI_TOOLKIT_AUTH", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "DB_PASSWORD"]
)
def test_8_a_config_cannot_ask_for_secrets(client, config, monkeypatch, name):
    monkeypatch.setenv(name, "the-value")
    text = config().replace("a red circle", f'"a ${{{name}}}"')
    response = client.post("/api/config/validate", json={"config_yaml": text})
    assert response.json()["ok"] is False and "the-value" not in response.text
    assert "web.secret_variable" in {error["code"] for error in response.json()["errors"]}
    job = client.post("/api/jobs", json={"config_yaml": text})
    assert client.post(f"/api/jobs/{job.json()['id']}/enqueue").status_code == 422


def test_8_other_variables_may_be_used(client, config, monkeypatch):
    monkeypatch.setenv("MODELS_PATH", "/models")
    text = config().replace("a red circle", '"${MODELS_PATH}"')
    body = client.post("/api/config/validate", json={"config_yaml": text}).json()
    assert body["ok"], body
    assert not is_secret_name("MONKEY") and is_secret_name("MY_KEY")


def test_15_a_job_gets_no_secret_of_the_server():
    parent = {
        "PATH": "/bin",
        "AI_TOOLKIT_AUTH": "s",
        "AWS_SECRET_ACCESS_KEY": "s",
        "SSH_AUTH_SOCK": "s",
        "CUDA_HOME": "/c",
    }
    given = job_environment(["gpu:1"], parent=parent)
    assert "s" not in given.values() and given["AI_TOOLKIT_AUTH"] == "" and given["CUDA_HOME"] == "/c"
    assert (
        given["CUDA_VISIBLE_DEVICES"] == "1"
        and job_environment(["cpu:0"], parent={})["CUDA_VISIBLE_DEVICES"] == ""
    )


# -- 10: stored scripts -----------------------------------------------------------------------------

SCRIPTS = [
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "<div hx-get=/api/jobs hx-trigger=load>",
    "{{7*7}}",
]


@pytest.mark.parametrize("text", SCRIPTS)
def test_10_what_users_write_is_shown_as_text(client, services, config, text):
    job = client.post("/api/jobs", json={"config_yaml": config()}).json()
    client.post(f"/api/jobs/{job['id']}/enqueue")
    services.lanes.claim()
    services.store.finish(services.store.get(job["id"]), "failed", text, info=text, phase=text)
    for page in (client.get("/jobs").text, client.get("/jobs", params={"q": text}).text):
        assert text not in page or text == "{{7*7}}"
        assert "49" not in page.replace(job["id"], "")
    assert "&lt;" in client.get("/jobs").text or text == "{{7*7}}"
    assert client.get("/login", params={"next": "/" + text}).text.count(text) == (
        1 if text == "{{7*7}}" else 0
    )
    problem = client.get(f"/api/jobs/{text}")
    assert problem.headers["content-type"] == "application/problem+json"
    assert problem.headers["x-content-type-options"] == "nosniff"


def test_10_files_with_programs_in_them_are_only_ever_saved(client, files):
    for name in ("a.svg", "a.html", "a.xml", "a.js", "a.txt", "a", "a.png.html"):
        only_saved(client, files, name)


def only_saved(client, files, name: str) -> None:
    """Check that a browser would save a file of this name and not show it."""
    (files / "cats" / name).write_text(
        "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    )
    saved = client.get(f"/api/files/datasets/cats/{name}")
    assert saved.headers["content-disposition"].startswith("attachment")
    assert saved.headers["content-type"] == "application/octet-stream"
    assert "sandbox" in saved.headers["content-security-policy"]
    assert client.get(f"/api/img/datasets/cats/{name}").status_code == 415


# -- 11, 12: pictures that are none, and enormous ones ----------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG of that many pixels, nearly all of them missing."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0")]
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("content", [b"<html><script>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"",
b"GIF89a<script>",
                                     b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])  # fmt: skip
def test_11_what_is_no_picture_gets_no_thumbnail(client, files, content):
    (files / "cats" / "odd.png").write_bytes(content)
    response = client.get("/api/img/datasets/cats/odd.png", params={"thumb": 64})
    assert response.status_code == 415, response.text
    assert client.get("/api/img/datasets/cats/odd.png").headers["content-type"] == "image/png"  # with nosniff


@pytest.mark.parametrize(
    ("width", "height"), [(12_000, 12_000), (20_000, 20_000), (8000, 7000), (2**30, 2**30)]
)
def test_12_an_enormous_picture_is_refused_by_its_header(client, files, width, height):
    (files / "cats" / "big.png").write_bytes(png_header(width, height))
    start = time.process_time()
    response = client.get("/api/img/datasets/cats/big.png", params={"thumb": 64})
    assert response.status_code in (413, 415) and time.process_time() - start < 5
    if width < 2**30:
        assert response.status_code == 413


def test_12_a_thumbnail_carries_nothing_of_its_original(client, files):
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    exif[0x0112] = 6  # lying on its side
    Image.new("RGB", (400, 200), "blue").save(files / "cats" / "gps.jpg", exif=exif)
    response = client.get("/api/img/datasets/cats/gps.jpg", params={"thumb": 64})
    with Image.open(io.BytesIO(response.content)) as small:
        assert small.size == (32, 64) and not small.getexif()
    assert b"where I live" not in response.content
    assert client.get("/api/img/datasets/cats/gps.jpg", params={"thumb": 5000}).status_code == 422


# -- 19: addresses that the server should ask ------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "//evil/x"]
)
def test_19_an_address_in_a_config_is_asked_by_nobody(client, config, monkeypatch, address):
    asked: list[object] = []
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda _self, where, *_: asked.append(where))
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    text = config().replace("name_or_path: tiny-sd", f"name_or_path: {address}")
    assert address in text
    assert client.post("/api/config/validate", json={"config_yaml": text}).status_code in (200, 422)
    made = client.post("/api/jobs", json={"config_yaml": text, "devices": ["cpu:0"]})
    assert made.status_code in (201, 422)
    if made.status_code == 201:
        assert client.get(f"/jobs/{made.json()['id']}/edit").status_code == 200
        client.post(f"/api/jobs/{made.json()['id']}/enqueue", json={})
    assert asked == []


# -- 20: headers and ranges -------------------------------------------------------------------------


def test_20_a_name_cannot_end_a_header(client, files):
    name = 'we"ird é😀.bin'
    (files / "cats" / name).write_bytes(b"0123456789")
    response = client.get(f"/api/files/datasets/cats/{name}")
    assert response.status_code == 200
    assert (
        response.headers["content-disposition"]
        == "attachment; filename*=utf-8''we%22ird%20%C3%A9%F0%9F%98%80.bin"
    )
    assert client.get("/api/files/datasets/cats/a%0d%0ab").status_code == 404


def test_20_many_ranges_are_refused_before_anybody_reads_them(client, files):
    (files / "cats" / "a.bin").write_bytes(b"0123456789")
    response = client.get(
        "/api/files/datasets/cats/a.bin", headers={"Range": "bytes=" + "0-," * 10_000 + "0-1"}
    )
    assert response.status_code == 416 and "ranges in one request" in response.text
    assert client.get("/api/files/datasets/cats/a.bin", headers={"Range": "bytes=2-3"}).content == b"23"
    assert client.get("/api/files/datasets/cats/a.bin", headers={"Range": "bytes=99-"}).status_code == 416
    tag = client.get("/api/files/datasets/cats/a.bin").headers["etag"]
    assert tag


# -- 21: streams ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_21_streams_are_few_and_hold_little():
    bell = Doorbell()
    readers = [bell.open("one") for _ in range(MOST_PER_CLIENT)]
    with pytest.raises(ApiError) as caught:
        bell.open("one")
    assert caught.value.status == 429
    readers += [bell.open(f"client {number}") for number in range(MOST_STREAMS - MOST_PER_CLIENT)]
    with pytest.raises(ApiError):
        bell.open("another")
    for number in range(MOST_NAMES + 50):
        bell.ring([f"job-{number}"] * 3)
    slow = readers[0]
    assert len(slow._waiting) == 1
    assert await slow.take(1) == {RESYNC: {}}
    bell.leave(slow)
    assert bell.open("one")


@pytest.fixture
def anyio_backend() -> str:
    """asyncio only."""
    return "asyncio"


@pytest.mark.anyio
async def test_21_an_event_is_sent_once_however_often_it_rings():
    import asyncio

    reader = Subscriber(asyncio.get_running_loop(), "x")
    for number in range(100):
        reader.put("jobs", number)
    assert await reader.take(1) == {"jobs": 99}
    assert await reader.take(0.01) == {}
