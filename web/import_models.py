"""Bodies of requests and answers about imports from ai-toolkit, as the API documents them."""

from __future__ import annotations

from pydantic import BaseModel, Field

from web.models import Body, FieldError
from web.queue.states import State


class ImportIn(Body):
    """What ai-toolkit has left on the server. dry_run: only say what would become of it."""

    path: str = Field(min_length=1, max_length=4000, description="Its folder, or a folder of its runs.")
    db: str | None = Field(None, max_length=4000, description="aitk_db.db, where it does not lie in `path`.")
    dry_run: bool = False


class ImportedJob(BaseModel):
    """A job or a run of ai-toolkit, and what became of it."""

    origin: str = Field(description="What it is called there.")
    id: str | None = Field(description="The job that it became; null if it did not, or not yet.")
    name: str | None = Field(description="What it is called here; null if it is left out.")
    status: State | None
    reason: str = Field(description="Why it is in this state, or why it is left out.")
    folder: str | None = Field(description="Its run folder, which is shown where it lies.")
    problems: list[FieldError] = Field(description="What has to be solved before it can be queued here.")
    notes: list[str]


class ImportOut(BaseModel):
    """What an import did, or would do. settings: those of the other UI; none of them is taken over."""

    source: str
    dry_run: bool
    num_imported: int
    jobs: list[ImportedJob]
    settings: dict[str, str]
    notes: list[str]
