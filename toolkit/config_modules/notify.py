"""The `notify` section: who is told when a run ends."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from toolkit.config_modules.base import Section, Text

Ending = Literal["finished", "stopped", "failed"]


def _web_address(url: str) -> str:
    """The address itself; the message does not repeat it, as it may be a secret."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        valid = False
    if not valid:
        raise PydanticCustomError("web_address", "must begin with http:// or https:// and name a host")
    return url


class NotifyConfig(Section):
    """A webhook that gets one POST of JSON (name, state, step, error, folder) when the run ends.

    Its key is not `on`, which YAML reads as true.
    """

    url: Annotated[Text, AfterValidator(_web_address)] | None = Field(
        None,
        description="Address of the webhook, best as ${VARIABLE}: it is a secret (null: nobody is told).",
    )
    when: list[Ending] = Field(
        ["finished", "stopped", "failed"], description="Which endings are told: finished, stopped, failed."
    )
