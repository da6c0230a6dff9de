"""Who may send what: hosts, origins, tokens, cookies, sizes."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from testing.web.conftest import BASE, TOKEN
from web.app import create_app
from web.routes.public import local_target
from web.security.body import BodyLimit
from web.security.hosts import is_allowed_host, parse_host
from web.security.sessions import IDLE_S

BEARER = {"Authorization": f"Bearer {TOKEN}"}
MAKE = {"config_yaml": "job: train\nconfig: {name: one}"}

GOOD_HOSTS = [
    "localhost",
    "LOCALHOST:8675",
    "127.0.0.1",
    "127.0.0.1:8675",
    "[::1]:8675",
    "[::1]",
    "192.168.1.5:80",
    "my.box",
]
BAD_HOSTS = [
    "evil.example", "localhost.evil", "localhost@evil", "evil.example:8675", "", " ", "localhost:99999",
    "localhost:x",
    "localhost:", "x/login?", "localhost/../", "[::1", "my.box.evil", "127.0.0.1.evil.example",
    "0x7f.1.evil", "a b",
]  # fmt: skip


def test_names_of_this_server_are_taken(settings):
    with TestClient(
        create_app(replace(settings, allowed_hosts=frozenset({"my.box"}))), base_url=BASE
    ) as client:
        for host in GOOD_HOSTS:
            assert client.get("/api/jobs", headers={"Host": host}).status_code == 200, host


def test_other_names_are_refused_for_reading_too(client):
    for host, path in itertools.product(
        BAD_HOSTS, ["/api/jobs", "/jobs", "/static/app.css", "/healthz", "/api/events"]
    ):
        response = client.get(path, headers={"Host": host})
        assert response.status_code == 400, (host, path)
    assert client.get("/api/jobs", headers={"Host": "my.box"}).status_code == 400


def test_a_host_given_twice_is_refused(client):
    request = client.build_request("GET", "/api/jobs")
    request.headers = type(request.headers)([(b"host", b"localhost"), (b"host", b"evil.example")])
    assert client.send(request).status_code == 400


def test_a_host_has_no_part_in_what_is_public(locked):
    """CVE-2026-48710: a Host with a path in it changed what the request's URL said."""
    assert locked.get("/api/jobs", headers={"Host": "localhost/login?"}).status_code == 400


@given(st.text(max_size=30))
def test_any_text_is_a_host_or_none(text):
    parsed = parse_host(text)
    assert parsed is None or (parsed[0] == parsed[0].lower() and not set(parsed[0]) & set("/@? \\"))
    assert not is_allowed_host("evil" + text.lower(), frozenset({"my.box"}))


SITES = ["cross-site", "same-site", "same-origin", "none", None, "nonsense"]
ORIGINS = [
    "http://evil.example", "null", "http://localhost:8675", "https://localhost:8675", "http://localhost:8676",
    "http://127.0.0.1:99999", "http://localhost:8675.evil", "http://localhost:8675@evil", "", None,
]  # fmt: skip


def test_where_a_change_may_come_from(client):
    for site, origin in itertools.product(SITES, ORIGINS):
        check_origin(client, site, origin)


def check_origin(client, site: str | None, origin: str | None) -> None:
    """Check that a change with these headers is refused, or passes, as the rule says."""
    headers = {
        key: value for key, value in (("Sec-Fetch-Site", site), ("Origin", origin)) if value is not None
    }
    response = client.post("/api/jobs", json={}, headers=headers)  # 422 if it may pass
    if site is not None:
        allowed = site in ("same-origin", "none")
    else:
        allowed = origin in ("http://localhost:8675", "https://localhost:8675", None)
    assert response.status_code == (422 if allowed else 403), (site, origin, response.text)


def test_a_cookie_alone_does_not_change_anything(locked):
    locked.post("/api/auth/login", json={"token": TOKEN})
    assert locked.get("/api/jobs").status_code == 200
    assert (
        locked.post("/api/jobs", json=MAKE).status_code == 403
    )  # neither header: no browser of today sends that
    assert locked.post("/api/jobs", json=MAKE, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 201
    assert locked.get("/api/jobs", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_the_token_opens_as_bearer_and_nowhere_else(locked):
    assert locked.get("/api/jobs", headers=BEARER).status_code == 200
    assert locked.get(f"/api/jobs?token={TOKEN}").status_code == 401
    assert locked.get("/api/jobs", headers={"Authorization": f"Basic {TOKEN}"}).status_code == 401
    assert locked.get("/api/jobs", headers={"Authorization": "Bearer "}).status_code == 401
    assert locked.get("/api/jobs", headers={"Cookie": f"aitk_session={TOKEN}"}).status_code == 401
    assert locked.get("/api/jobs", headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 401


def test_signing_in_and_out(locked):
    page = locked.get("/jobs?q=a", headers={"Accept": "text/html"})
    assert page.status_code == 401 and 'name="token"' in page.text and 'value="/jobs?q=a"' in page.text
    assert (
        locked.get("/jobs", headers={"Accept": "text/html", "HX-Request": "true"}).headers["hx-redirect"]
        == "/login"
    )
    wrong = locked.post("/login", data={"token": "wrong", "next": "/jobs"}, follow_redirects=False)
    assert wrong.status_code == 401 and "set-cookie" not in wrong.headers
    right = locked.post("/login", data={"token": TOKEN, "next": "/jobs?q=a"}, follow_redirects=False)
    assert (right.status_code, right.headers["location"]) == (303, "/jobs?q=a")
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert locked.get("/api/auth").json()["isAuthenticated"]
    value = locked.cookies["aitk_session"]
    out = locked.post("/logout", headers={"Sec-Fetch-Site": "same-origin"}, follow_redirects=False)
    assert out.status_code == 303 and locked.get("/api/jobs").status_code == 401
    assert locked.get("/api/jobs", headers={"Cookie": f"aitk_session={value}"}).status_code == 401


def test_a_session_ends_when_idle_and_with_the_token(settings, locked):
    locked.post("/api/auth/login", json={"token": TOKEN})
    database = locked.app.state.services.database
    with database.read() as connection:
        row = connection.exec_driver_sql("SELECT id_hash, token_hash FROM sessions").one()
    assert locked.cookies["aitk_session"] not in row and TOKEN not in row
    other = create_app(replace(settings, token="another token"))
    with TestClient(other, base_url=BASE, cookies=dict(locked.cookies)) as client:
        assert client.get("/api/jobs").status_code == 401
    with database.write() as tx:
        tx.connection.exec_driver_sql(f"UPDATE sessions SET seen_at = seen_at - {IDLE_S + 1}")
    assert locked.get("/api/jobs").status_code == 401


def test_behind_tls_the_cookie_says_so(settings):
    app = create_app(replace(settings, token=TOKEN, secure_cookie=True))
    with TestClient(app, base_url="https://localhost") as client:
        cookie = client.post("/api/auth/login", json={"token": TOKEN}).headers["set-cookie"]
        assert cookie.startswith("__Host-") and "Secure" in cookie and "Path=/" in cookie
        assert client.get("/api/jobs").status_code == 200


def test_guessing_is_slowed_down(locked):
    for _ in range(5):
        assert locked.post("/api/auth/login", json={"token": "x"}).status_code == 401
    for headers in ({}, {"X-Forwarded-For": "1.2.3.4"}, {"X-Real-IP": "1.2.3.4"}):
        refused = locked.post("/api/auth/login", json={"token": TOKEN}, headers=headers)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    assert locked.post("/login", data={"token": TOKEN}).status_code == 429


def test_guesses_from_everywhere_are_counted_together():
    from web.security.sessions import LoginLimit

    limit = LoginLimit()
    for number in range(30):
        assert limit.wait(f"10.0.0.{number}") == 0
        limit.failed(f"10.0.0.{number}")
    assert limit.wait("10.0.1.1") > 0


def test_the_token_is_compared_in_constant_time():
    source = "".join(path.read_text() for path in Path("web").rglob("*.py"))
    assert "compare_digest" in source
    assert re.findall(r"\btoken\b\s*[!=]=|[!=]=\s*\S*\btoken\b(?!_)", source) == []


def test_the_token_shows_up_nowhere(locked, caplog):
    with caplog.at_level(logging.DEBUG):
        for path in ("/api/jobs", "/jobs", "/nothing", "/api/jobs/x", f"/api/jobs?token={TOKEN}",
        "/openapi.json", "/docs",
                     "/api/settings"):  # fmt: skip
            assert TOKEN not in locked.get(path, headers=BEARER).text
        bad = locked.post("/api/auth/login", json={"token": TOKEN, "x": 1})
        assert bad.status_code == 422 and TOKEN not in bad.text
        assert TOKEN not in locked.post("/login", data={"token": TOKEN + "x"}).text
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
    assert not any(TOKEN in line for line in ours)
    assert TOKEN not in repr(locked.app.state.services.settings)


ELSEWHERE = [
    "//evil", "/\\evil", "https://evil", "javascript:alert(1)", "\\\\evil", "evil", "/a\nb", "", "/\t/evil",
]  # fmt: skip


def test_after_signing_in_one_stays_here(locked):
    for target in ELSEWHERE:
        assert local_target(target) == "/"
        response = locked.post("/login", data={"token": TOKEN, "next": target}, follow_redirects=False)
        assert response.status_code == 303 and response.headers["location"] == "/"
        locked.cookies.clear()


def test_behind_a_proxy_links_begin_with_its_path(settings):
    app = create_app(replace(settings, root_path="/ai", token=TOKEN))
    with TestClient(app, base_url=BASE, root_path="/ai") as client:
        for path in ("/jobs", "/ai/jobs"):  # stripped by the proxy or not
            assert client.get(path).status_code == 401
            text = client.get(path, headers=BEARER).text
            assert 'href="/ai/static/app.css"' in text and 'href="/ai/jobs"' in text
            assert set(re.findall(r'(?:href|src|action)="(/[^"]*)"', text)) == {
                link
                for link in re.findall(r'(?:href|src|action)="(/[^"]*)"', text)
                if link.startswith("/ai/")
            }
        made = client.post("/api/jobs", json=MAKE, headers=BEARER)
        assert made.headers["location"].startswith("/ai/api/jobs/")
        assert client.get("/ai/static/app.css").status_code == 200
        signed = client.post("/login", data={"token": TOKEN, "next": "/jobs"}, follow_redirects=False)
        assert signed.headers["location"] == "/ai/jobs"


def test_a_large_body_is_refused_announced_or_not(client):
    big = b"x" * (2 * 1024 * 1024 + 1)
    assert (
        client.post("/api/jobs", content=big, headers={"Content-Type": "application/json"}).status_code == 413
    )
    pieces = client.post(
        "/api/jobs", content=iter([big[:1_500_000]] * 2), headers={"Content-Type": "application/json"}
    )
    assert pieces.status_code == 413 and pieces.json()["code"] == "web.too_large"
    lying = client.post("/api/jobs", content=iter([b"{", b"}"]), headers={"Content-Type": "application/json"})
    assert lying.status_code == 422


def test_a_body_that_stops_coming_is_given_up():
    answers = []

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass

    async def stalled():
        await asyncio.sleep(5)

    async def send(message):
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "root_path": ""}
    asyncio.run(asyncio.wait_for(BodyLimit(app, idle_s=0.05)(scope, stalled, send), 2))
    assert answers[0]["status"] == 408


def test_only_uploads_may_be_large():
    limit = BodyLimit(None)
    assert limit.limit_of("/api/datasets/cats/items") > 1e9
    for path in (
        "/api/datasets/cats/items/x",
        "/api/datasets/a/b/items",
        "/api/jobs",
        "/x/api/datasets/cats/items",
    ):
        assert limit.limit_of(path) == 2 * 1024 * 1024
