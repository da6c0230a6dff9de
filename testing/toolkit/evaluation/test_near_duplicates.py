"""Pictures that look the same are found; those that only share a colour or a shape are not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
from PIL import Image

from toolkit.data.items import Bucket, MediaItem, Placement
from toolkit.evaluation import near_duplicates
from toolkit.evaluation.flags import overlap
from toolkit.evaluation.near_duplicates import Look, look_at_all, look_of, near_blocks, twins
from tools.draw_shapes import make_drawing, render


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """Eight drawings, a JPEG of the first, and the second at another size."""
    folder = tmp_path_factory.mktemp("pictures")
    images = [render(make_drawing(i, 5), 64) for i in range(8)]
    images += [images[0], images[1].resize((200, 200), Image.Resampling.LANCZOS)]
    paths = [folder / (f"{i}.jpg" if i == 8 else f"{i}.png") for i in range(10)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths


def near_pairs(looks: Sequence[Look]) -> list[tuple[int, int]]:
    return [pair for block in near_blocks(looks) for pair in zip(*map(list, block), strict=True)]


def item(path: Path, caption: str) -> MediaItem:
    return MediaItem(
        id=path.name, path=path, sha256=path.name, caption=caption, dataset="d", bucket=Bucket(32, 32),
        placement=Placement(32, 32, 0, 0),
    )  # fmt: skip


def test_copies_are_found_in_another_format_and_size(pictures):
    assert set(near_pairs(look_at_all(pictures))) == {(0, 8), (1, 9)}


def test_only_colours_tell_flat_pictures_apart():
    flat = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", (250, 0, 3))]
    assert near_pairs([look_of(image) for image in flat]) == [(0, 2)]
    assert near_pairs([]) == []


def test_twins_have_captions_that_differ(pictures):
    said = [f"thing number {i}" for i in range(8)] + ["something else entirely", "thing number 1"]
    found = twins([item(path, text) for path, text in zip(pictures, said, strict=True)])
    assert {path.name for path in found} == {"0.png", "8.jpg"}
    assert "'something else entirely'" in found[pictures[0]].message


def test_where_all_pictures_look_the_same_few_captions_are_compared(monkeypatch):
    """Six hundred are 180,000 pairs; what a pair has to tell is known of most from others."""
    compared = []

    def counting(*words: frozenset[str]) -> float:
        compared.append(words)
        return overlap(*words)

    monkeypatch.setattr(near_duplicates, "overlap", counting)
    monkeypatch.setattr(near_duplicates, "look_at_all", lambda paths: [Look(0, bytes(192))] * len(paths))
    paths = [Path(f"{number}.png") for number in range(600)]
    found = twins([item(path, f"{path.stem} alone") for path in paths])
    assert set(found) == set(paths) and "'1 alone'" in found[paths[0]].message
    assert all("'0 alone'" in found[path].message for path in paths[1:])
    assert len(compared) < 10_000
    compared.clear()
    assert twins([item(path, "the same of all") for path in paths]) == {}
    assert compared == []
    monkeypatch.setattr(near_duplicates, "MOST_COMPARED", 8)
    assert twins([item(path, f"nearly the same of all {path.stem}") for path in paths]) == {}
    assert 600 * 4 <= len(compared) < 15_000


def test_ten_thousand_looks_are_compared_in_seconds():
    draws = numpy.random.default_rng(0)
    # Flat pictures, the worst case for the bits: all of them agree, and only colours tell them apart.
    looks = [Look(0, draws.bytes(192)) for _ in range(1500)]
    bits = draws.integers(0, 2**63, 8500)
    looks += [Look(int(b), draws.bytes(192)) for b in bits]
    start = time.process_time()
    assert near_pairs(looks) == []
    assert time.process_time() - start < 30
