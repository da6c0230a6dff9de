"""The pages in the bar at the top, in this order: (path, label). A page adds its line when it exists."""

from __future__ import annotations

NAVIGATION: list[tuple[str, str]] = [
    ("/", "Dashboard"),
    ("/jobs", "Jobs"),
    ("/compare", "Compare"),
    ("/datasets", "Datasets"),
    ("/evaluations", "Evaluations"),
    ("/settings", "Settings"),
    ("/docs", "API"),
]
