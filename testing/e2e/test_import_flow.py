"""What ai-toolkit has left, imported in a browser: looked at, imported, its run seen; wide, narrow, plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testing.e2e.conftest import open_tab
from testing.e2e.test_looks import AXE, RULES, RUN, WIDER
from testing.web.foreign_kit import make_database, make_run, tree

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def check(page: Any) -> None:
    """The page fits its window, and axe-core finds nothing."""
    page.evaluate(AXE)
    assert page.evaluate(RUN, RULES) == [] and page.evaluate(WIDER) <= 0


@pytest.mark.parametrize(
    ("width", "scheme", "scripts"), [(1280, "light", True), (390, "dark", True), (1280, "light", False)]
)
def test_an_import_is_looked_at_and_then_made(browser, server, server_folder, width, scheme, scripts):
    name = f"cat_{width}_{scripts}"
    folder: Path = server_folder / "output" / f"foreign_{name}"
    make_database(folder / "aitk_db.db", [{"id": name, "name": name, "status": "completed", "step": 500}])
    make_run(folder / "output" / name, steps=(250, 500))
    before = tree(folder)
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    with open_tab(browser, server, java_script_enabled=scripts, **options) as page:
        page.goto("/settings")
        page.fill("#path", str(folder))
        page.get_by_role("button", name="Look").click()
        assert page.inner_text("h1") == "What would be imported"
        if scripts:
            check(page)
        page.get_by_role("button", name="Import", exact=True).click()
        assert page.inner_text("h1") == "Imported from ai-toolkit"
        page.get_by_role("link", name=name, exact=True).click()
        assert page.inner_text("h1") == name
        job_id = page.url.rpartition("/")[2]
        page.get_by_role("link", name="Samples", exact=True).click()
        page.get_by_role("img", name="Step 500: a blue square").wait_for()
        if scripts:
            check(page)
        assert page.request.delete(f"/api/jobs/{job_id}").status == 204  # later tests look at what is left
    assert tree(folder) == before
