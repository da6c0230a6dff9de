from __future__ import annotations

import subprocess
import sys

import pytest

from toolkit.config_modules.names import NETWORK_TYPES
from toolkit.errors import ConfigError
from toolkit.networks.catalogue import NETWORKS, NOT_YET, explain_network, resolve_network


def test_every_type_is_attached_by_a_function() -> None:
    assert set(NETWORKS) == set(NETWORK_TYPES.values())
    for name in NETWORKS:
        assert explain_network(name) is None
        assert callable(resolve_network(name))


@pytest.mark.parametrize("name", NOT_YET)
def test_known_types_that_are_not_there_yet_say_so(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is not supported yet; supported: lora, "):
        resolve_network(name)


def test_a_typing_mistake_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="unknown network type 'lroa'; did you mean 'lora'"):
        resolve_network("lroa")


def test_tables_names_and_metadata_need_no_torch() -> None:
    modules = "toolkit.networks.catalogue, toolkit.networks.key_formats, toolkit.metadata"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
