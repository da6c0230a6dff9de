"""Everything a route may need, made once for an app."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from web.database import Database
from web.doorbell import Doorbell
from web.evaluations.reports import Reports
from web.pages import Pages
from web.preferences import Preferences
from web.queue.lanes import Lanes
from web.queue.store import JobStore
from web.queue.supervisor import Supervisor
from web.runs.metrics_index import MetricsIndexes
from web.security.sessions import LoginLimit, Sessions
from web.settings import WebSettings
from web.system import Monitor


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts of a running server."""

    settings: WebSettings
    database: Database
    lanes: Lanes
    store: JobStore
    sessions: Sessions
    logins: LoginLimit
    doorbell: Doorbell
    preferences: Preferences
    supervisor: Supervisor
    metrics: MetricsIndexes
    pages: Pages
    monitor: Monitor
    reports: Reports = field(default_factory=Reports)


async def _of(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


Served = Annotated[Services, Depends(_of)]
