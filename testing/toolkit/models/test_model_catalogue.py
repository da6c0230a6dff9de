"""The table of architectures."""

from __future__ import annotations

import pytest

from toolkit.errors import ModelError
from toolkit.models.catalogue import ARCHITECTURES, find_architecture, pipeline_architecture


@pytest.mark.parametrize("name", ["sd15", "sd1", "sd1.5", "SD15", "sd1:anything"])
def test_names_of_stable_diffusion_1(name):
    entry = find_architecture(name)
    assert (entry.name, entry.supported, entry.noise_scheduler, entry.resolution) == (
        "sd15",
        True,
        "ddpm",
        512,
    )


def test_every_supported_architecture_has_a_loader():
    supported = [entry for entry in ARCHITECTURES.values() if entry.supported]
    assert supported
    assert all(callable(entry.load()) for entry in supported)


@pytest.mark.parametrize("name", [name for name, entry in ARCHITECTURES.items() if not entry.supported])
def test_what_is_not_supported_yet_says_so(name):
    with pytest.raises(ModelError, match=f"{name} .* is not supported yet .*supported: sd15"):
        find_architecture(name).load()


def test_an_unknown_architecture_gets_a_suggestion():
    with pytest.raises(ModelError, match="unknown architecture 'sdxll'; did you mean 'sdxl'"):
        find_architecture("sdxll")


def test_names_and_aliases_are_unique():
    names = [name for entry in ARCHITECTURES.values() for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))


def test_pipeline_classes_of_diffusers():
    import diffusers

    from toolkit.models import catalogue

    for class_name in catalogue._PIPELINES:
        assert hasattr(diffusers, class_name)
        assert pipeline_architecture(class_name) is not None
    assert pipeline_architecture("NoSuchPipeline") is None
