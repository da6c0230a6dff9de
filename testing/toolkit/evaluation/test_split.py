"""The split never parts pictures that look alike."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy.sparse.csgraph import connected_components

from toolkit.data.scan import scan_dataset
from toolkit.errors import DatasetError
from toolkit.evaluation import near_duplicates, split
from toolkit.evaluation.near_duplicates import Look
from toolkit.evaluation.split import Picture


def scene(seed: int) -> Image.Image:
    """A picture of soft blobs, another for each seed."""
    values = numpy.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=numpy.uint8)
    return Image.fromarray(values).resize((96, 80), Image.Resampling.BICUBIC)


def recompressed(image: Image.Image, path: Path) -> None:
    image.save(path.with_suffix(".jpg"), quality=70)


COPIES = {
    "jpeg": recompressed,
    "small": lambda image, path: image.resize((64, 53)).save(path),
    "large": lambda image, path: image.resize((192, 160)).save(path),
    "mirrored": lambda image, path: ImageOps.mirror(image).save(path),
    "mirrored jpeg": lambda image, path: recompressed(ImageOps.mirror(image), path),
    "brighter": lambda image, path: ImageEnhance.Brightness(image).enhance(1.02).save(path),
    "same bytes": lambda image, path: image.save(path),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[Path, Picture]:
    """Thirty scenes; every third of them with all kinds of copies, under names that say nothing of it."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(30):
        scene(seed).save(folder / f"{seed:02}.png")
        for number, copy in enumerate(COPIES.values() if seed % 3 == 0 else ()):
            copy(scene(seed), folder / f"{number}_of_{seed:02}.png")
    items = scan_dataset(folder, resolutions=[64], size_multiple=8, default_caption="").items
    return split.pictures_of(items)


def scene_of(path: Path) -> int:
    return int(path.stem[-2:])


def test_copies_are_one_group_and_others_are_not(pictures):
    groups = {}
    for path, picture in pictures.items():
        groups.setdefault(picture.group, set()).add(scene_of(path))
    assert sorted(map(sorted, groups.values())) == [[seed] for seed in range(30)]
    assert len(pictures) == 30 + 10 * len(COPIES)


@settings(max_examples=60, deadline=None)
@given(fraction=st.floats(0.1, 0.5), seed=st.integers(0, 2**31), shy=st.sets(st.integers(0, 29), max_size=12))
def test_near_copies_are_never_parted(pictures, fraction, seed, shy):
    """Whatever fraction and seed, and whichever scenes have a copy that regularises."""
    marked = [
        Picture(p.path, p.sha256, p.group, not (scene_of(p.path) in shy and "_of_" not in p.path.name))
        for p in pictures.values()
    ]
    held = split.hold_out(marked, fraction, seed)
    inside, outside = {scene_of(path) for path in held}, {scene_of(p) for p in pictures if p not in held}
    assert inside & outside == set()
    assert inside & shy == set()
    free = sum(scene_of(path) not in shy for path in pictures)
    assert 2 <= len(held) <= round(fraction * free)


def test_a_chain_of_small_changes_is_one_group(tmp_path):
    """First and last no longer look alike, yet each looks like its neighbour."""
    base, other = (numpy.asarray(scene(seed), dtype=float) for seed in (1, 2))
    looks = []
    for index in range(161):
        mixed = (base + (other - base) * index / 160).clip(0, 255).astype(numpy.uint8)
        path = tmp_path / f"{index}.png"
        Image.fromarray(mixed).save(path)
        looks.append(split.look_both_ways(path))
    assert len(set(split.groups_of(looks))) == 1
    assert len(set(split.groups_of([looks[0], looks[-1]]))) == 2


@pytest.mark.parametrize("spread", [0, 20, 60])
def test_groups_are_the_connected_components_also_of_a_crowd(monkeypatch, spread):
    """Against scipy's, of flat greys whose neighbours look alike, with few pairs at once."""
    monkeypatch.setattr(near_duplicates, "_PAIRS", 16)
    greys = numpy.random.default_rng(spread).integers(0, 1 + 2 * spread, 60)
    looks = [Look(0, bytes([int(grey)] * 192)) for grey in greys]
    alike = abs(greys[:, None] - greys[None]) <= near_duplicates.NEAR_COLOUR
    _, wanted = connected_components(alike)
    found = split.groups_of([(look, look) for look in looks])
    assert [[a == b for b in found] for a in found] == (wanted[:, None] == wanted[None]).tolist()


def test_the_choice_hangs_on_content_and_seed_alone(pictures):
    values = list(pictures.values())
    held = split.hold_out(values, 0.3, 5)
    assert split.hold_out(values[::-1], 0.3, 5) == held
    assert split.hold_out(values, 0.3, 6) != held


def test_a_crowd_of_copies_is_not_all_there_is(pictures):
    """Room for eight pictures, and ten scenes with eight copies each: single ones are taken."""
    held = split.hold_out(pictures.values(), 0.08, 0)
    assert len(held) == 8
    assert len({scene_of(path) for path in held}) == 8


def test_too_few_to_hold_out_are_told(pictures):
    few = [picture for picture in pictures.values() if scene_of(picture.path) in (0, 1, 2)]
    with pytest.raises(DatasetError, match="holds out 0; at least 2") as caught:
        split.hold_out(few, 0.1, 0)
    assert caught.value.problems[0].key == "validation.fraction"
    assert "raise validation.fraction" in str(caught.value)


def test_of_a_picture_the_largest_unflipped_item_is_measured(tmp_path):
    scene(3).save(tmp_path / "a.png")
    items = scan_dataset(
        tmp_path, resolutions=[32, 64], size_multiple=8, flip_x=True, num_repeats=2, default_caption=""
    ).items
    assert len(items) == 8
    (chosen,) = split.one_each(items)
    assert max(chosen.bucket.width, chosen.bucket.height) > 32
    assert not chosen.placement.flip_x
