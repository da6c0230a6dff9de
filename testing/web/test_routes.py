"""Every route, whatever it does: nothing without credentials, from another site or under another name."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from testing.web.conftest import TOKEN
from web.database import Database
from web.security.auth import PUBLIC

BEARER = {"Authorization": f"Bearer {TOKEN}"}


def api_routes(routes: list) -> Iterator[APIRoute]:
    """Every route of an app, those of included routers too."""
    for route in routes:
        if hasattr(route, "methods") and hasattr(route, "path"):
            yield route
        inner = getattr(route, "routes", None) or getattr(
            getattr(route, "original_router", None), "routes", None
        )
        if inner:
            yield from api_routes(inner)


def operations(app: FastAPI) -> list[tuple[str, str]]:
    """(method, a path that fits) of everything the app serves, the description of the API too."""
    found = []
    for route in api_routes(app.routes):
        path = re.sub(r"\{\w+(?::\w+)?\}", "x", route.path)
        found += [(method, path) for method in sorted(route.methods)]
    return found


def test_the_routes_are_found(locked):
    found = operations(locked.app)
    assert {("GET", "/api/jobs"), ("POST", "/api/jobs"), ("GET", "/jobs"), ("GET", "/openapi.json"),
            ("GET", "/api/events"), ("PUT", "/api/jobs/x")} <= set(found)  # fmt: skip
    documented = locked.get("/openapi.json", headers=BEARER).json()["paths"]
    shown = {
        (method.upper(), re.sub(r"\{\w+\}", "x", path)) for path in documented for method in documented[path]
    }
    assert shown <= set(found) and len(shown) > 20


def test_nothing_is_served_without_credentials(locked):
    for method, path in operations(locked.app):
        if path in PUBLIC:
            continue
        response = locked.request(method, path)
        assert response.status_code == 401, (method, path)
        assert TOKEN not in response.text
        wrong = locked.request(method, path, headers={"Authorization": "Bearer wrong"})
        assert wrong.status_code == 401, (method, path)


def test_what_is_public_is_little(locked):
    assert {path for _, path in operations(locked.app) if path in PUBLIC} == set(PUBLIC)
    assert locked.get("/static/app.css").status_code == 200
    assert locked.get("/api/auth").json() == {"isAuthenticated": False, "required": True}


NEAR = [
    "/static/../api/jobs", "/static/%2e%2e/api/jobs", "/static//api/jobs", "//api/jobs", "/login/../api/jobs",
    "/login%2f..%2fapi/jobs", "/api/jobs/", "/Login",
]  # fmt: skip


@pytest.mark.parametrize("path", NEAR)
def test_a_path_near_a_public_one_opens_nothing(locked, path):
    response = locked.get(path)
    assert response.status_code in (401, 404), response.text
    assert '"jobs"' not in response.text


def test_every_change_from_another_site_is_refused(locked):
    for method, path in operations(locked.app):
        if method in ("GET", "HEAD"):
            continue
        response = locked.request(method, path, headers={**BEARER, "Sec-Fetch-Site": "cross-site"})
        assert response.status_code == 403, (method, path)
        assert response.json()["code"] == "web.cross_site"


def test_every_route_needs_an_allowed_host(locked):
    for method, path in operations(locked.app):
        response = locked.request(method, path, headers={**BEARER, "Host": "evil.example"})
        assert response.status_code == 400, (method, path)
        assert method == "HEAD" or response.json()["code"] == "web.bad_host"


def test_reading_changes_nothing(locked, settings):
    def content(database: Database) -> dict[str, list]:
        with database.read() as connection:
            names = (
                connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'")
                .scalars()
                .all()
            )
            return {name: connection.exec_driver_sql(f'SELECT * FROM "{name}"').all() for name in names}  # noqa: S608

    database = locked.app.state.services.database
    job = locked.post(
        "/api/jobs", headers=BEARER, json={"config_yaml": "job: train\nconfig: {name: one}"}
    ).json()
    before = content(database)
    for method, path in operations(locked.app):
        if method == "GET" and path != "/api/events":
            locked.get(path.replace("/x", f"/{job['id']}", 1), headers=BEARER)
    assert content(database) == before


def test_every_answer_carries_the_headers(client: TestClient):
    for path in ("/jobs", "/api/jobs", "/nothing", "/static/app.css", "/openapi.json"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
    assert "immutable" in client.get("/static/vendor/htmx-4.0.1/htmx.min.js").headers["cache-control"]


def test_pages_hold_no_inline_code(client: TestClient):
    for path in ("/jobs", "/docs", "/login"):
        text = client.get(path).text
        assert "<script>" not in text and " style=" not in text and "<style" not in text
        assert re.findall(r"\son\w+=", text) == [] and "hx-on" not in text and "js:" not in text
        assert "https://" not in text and "http://" not in text
