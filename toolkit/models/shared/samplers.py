"""Samplers by the names of a config, as schedulers of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers

from toolkit.config_modules.names import SAMPLERS


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler that `name` means, with the noise schedule of the model's own `config`.

    Raises KeyError for a name that the config sections would have refused.
    """
    sampler = SAMPLERS[name]
    return getattr(diffusers, sampler.scheduler).from_config(dict(config), **sampler.settings)
