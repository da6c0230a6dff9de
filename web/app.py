"""The app: its parts, its middleware in order, its routes. `create_app` makes one; nothing here is global."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles

from web import problems
from web.database import Database
from web.doorbell import Doorbell
from web.launchers.local import LocalLauncher
from web.models import ProblemOut
from web.pages import make_pages
from web.preferences import Preferences
from web.queue.lanes import Lanes
from web.queue.store import JobStore
from web.queue.supervisor import Supervisor
from web.runs.metrics_index import MetricsIndexes
from web.security.auth import AuthGuard
from web.security.body import BodyLimit
from web.security.headers import SecurityHeaders
from web.security.hosts import HostGuard, OriginGuard
from web.security.sessions import LoginLimit, Sessions
from web.services import Services
from web.settings import WebSettings
from web.system import Monitor

STATIC = Path(__file__).parent / "static"
VERSION = "0.1.0"
# Each has a `router`. A new file of routes is one more line; those that programs ask most come first.
ROUTES = (
    "web.routes.public",
    "web.routes.jobs",
    "web.routes.runs",
    "web.routes.results",
    "web.routes.queue",
    "web.routes.stream",
    "web.routes.datasets",
    "web.routes.dataset_items",
    "web.routes.evaluations",
    "web.routes.settings",
    "web.routes.system",
    "web.routes.files",
    "web.routes.pages",
    "web.routes.edit_page",
    "web.routes.job_page",
    "web.routes.job_actions",
    "web.routes.compare_page",
    "web.routes.settings_page",
    "web.routes.dataset_pages",
    "web.routes.dataset_forms",
    "web.routes.evaluation_pages",
)


def make_services(settings: WebSettings) -> Services:
    """The parts of a server; opens and migrates the database. Raises UserError."""
    database = Database(settings.database_path)
    lanes = Lanes(database, settings.devices)
    doorbell = Doorbell(_describe)
    database.listen(doorbell.ring)
    sessions = Sessions(database, settings.token)
    store, preferences = JobStore(database, lanes), Preferences(database, settings)
    supervisor = Supervisor(
        settings, database, store, lanes, preferences, launcher=LocalLauncher(), ring=doorbell.ring
    )
    return Services(
        settings=settings, database=database, lanes=lanes, store=store, sessions=sessions,
        logins=LoginLimit(), doorbell=doorbell, preferences=preferences, supervisor=supervisor,
        metrics=MetricsIndexes(), pages=make_pages(sessions.required),
        monitor=Monitor(lambda: [
            ("runs", preferences.output_root), ("datasets", preferences.datasets_root),
            ("data", settings.data_root),
        ]),
    )  # fmt: skip


def create_app(settings: WebSettings) -> FastAPI:
    """The web server as an ASGI app. Raises UserError if its database cannot be used."""
    services = make_services(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if settings.schedule:
            services.supervisor.start()
        try:
            yield
        finally:
            services.doorbell.close()
            services.supervisor.stop()
            services.database.close()

    app = FastAPI(
        title="AI Toolkit", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None,
        openapi_url="/openapi.json", generate_unique_id_function=_operation_id, redirect_slashes=False,
    )  # fmt: skip
    app.state.services = services
    problems.install(app)
    # The last one added sees a request first.
    app.add_middleware(BodyLimit)
    app.add_middleware(AuthGuard, sessions=services.sessions, pages=services.pages)
    app.add_middleware(OriginGuard)
    app.add_middleware(HostGuard, allowed=settings.allowed_hosts)
    app.add_middleware(SecurityHeaders)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    for name in ROUTES:
        router = importlib.import_module(name).router
        assert isinstance(router, APIRouter)
        app.include_router(router)
    _with_problems(app)
    return app


def _describe(topic: str) -> dict[str, str]:
    """What an event says besides its name."""
    kind, _, job_id = topic.partition("-")
    return {"id": job_id} if kind in ("job", "deleted", "log") and job_id else {}


def _with_problems(app: FastAPI) -> None:
    """Add the form of an error, which routes only refer to, to the description of the API."""
    original = app.openapi

    def described() -> dict[str, Any]:
        schema = original()
        known = schema.setdefault("components", {}).setdefault("schemas", {})
        if "ProblemOut" not in known:
            problem = ProblemOut.model_json_schema(ref_template="#/components/schemas/{model}")
            known |= {**problem.pop("$defs", {}), "ProblemOut": problem}
        return schema

    app.openapi = described  # type: ignore[method-assign]


def _operation_id(route: APIRoute) -> str:
    """The stable name of an operation: that of its function."""
    return route.name.rstrip("_")
