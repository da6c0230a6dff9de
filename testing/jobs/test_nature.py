"""What a config tells of a training is what its network turns out to be."""

from __future__ import annotations

import pytest

from jobs import build
from jobs.nature import known_nature
from jobs.trained_model import load_trained_model
from testing.job_helpers import training_config
from testing.tiny_models import build_tiny_sd15
from toolkit.config_modules.loading import load_job


@pytest.mark.parametrize("kind", ["lora", "locon", "dora", "loha", "lokr", "full"])
def test_the_words_of_a_config_are_those_of_its_network(tmp_path, kind):
    options = {"type": "lokr", "lokr_full_rank": True} if kind == "full" else {"type": kind}
    model = build_tiny_sd15(tmp_path / "sd15")
    (section,) = load_job(training_config(tmp_path, model, network=options)).config.process
    network = load_trained_model(section, build.accelerator(section)).network
    known = known_nature(section)
    assert known["adapter"] == f"{network.kind.title} with alpha {network.alpha:g}"
    assert known.get("network.linear", network.rank) == network.rank
    assert known["network.conv"] == network.size.conv_rank
