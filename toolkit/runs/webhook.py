"""Telling another program that a run has ended: one POST of JSON. Torch-free."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 10.0


def post_json(url: str, payload: Mapping[str, Any], *, timeout_s: float = TIMEOUT_S) -> str | None:
    """POST `payload` to an http(s) address; None if it was taken, else why not, without the address's secret.

    Nobody's answer is worth a run, so nothing is raised.
    """
    host = urlsplit(url).hostname or "the webhook"
    request = urllib.request.Request(
        url,
        data=json.dumps(payload).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "ai-toolkit"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as error:
        return f"{host} answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or type(error.reason).__name__
        return f"{host} cannot be reached: {reason}"
    except TimeoutError:
        return f"{host} did not answer within {timeout_s:g} s"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"{host}: {type(error).__name__}"
