"""Which file a name on the command line means."""

from __future__ import annotations

import pytest

from toolkit.config_modules.lookup import find_config
from toolkit.errors import ConfigError

pytestmark = pytest.mark.usefixtures("folder")


# -- lookup ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("existing", "asked", "found"),
    [
        (["config/a.yml"], "a", "config/a.yml"),
        (["config/a.yaml"], "a.yaml", "config/a.yaml"),
        (["config/a.jsonc"], "a", "config/a.jsonc"),
        (["config/a.json", "config/a.yml"], "a", "config/a.json"),
        (["config/examples/a.yml"], "a", "config/examples/a.yml"),
        (["config/examples/a.yml"], "a.yml", "config/examples/a.yml"),
        (["config/examples/a.yml", "config/a.yml"], "a", "config/a.yml"),
        (["config/sub/a.yml"], "sub/a", "config/sub/a.yml"),
        (["a.yml", "config/a.yml"], "a.yml", "a.yml"),
        (["a.yml", "config/a.yml"], "a", "config/a.yml"),
        (["a.yml"], "a", "a.yml"),
        (["a.yml"], "./a.yml", "a.yml"),
        (["config/v1.5.yml"], "v1.5", "config/v1.5.yml"),
        (["job_file"], "job_file", "job_file"),
    ],
)
def test_where_a_config_is_found(folder, existing, asked, found):
    for name in existing:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert find_config(asked).resolve() == (folder / found).resolve()


def test_an_absolute_path_is_itself(folder):
    (folder / "a.yml").touch()
    assert find_config(folder / "a.yml") == folder / "a.yml"


def test_a_config_that_is_nowhere(folder):
    (folder / "config" / "train_lora.yml").touch()
    with pytest.raises(ConfigError, match=r"did you mean 'train_lora'\?"):
        find_config("train_lra")
    with pytest.raises(ConfigError, match="looked in"):
        find_config("zzz")
