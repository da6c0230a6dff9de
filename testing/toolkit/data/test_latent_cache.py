"""Latents are found again by content, and never when anything they depend on has changed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import safe_open, save_file
from torch import Tensor, nn

from toolkit.data import latent_cache, tensor_store
from toolkit.data.items import Bucket, MediaItem
from toolkit.data.latent_cache import LatentCache
from toolkit.data.scan import scan_dataset
from toolkit.data.tensor_store import TensorStore, module_hash
from toolkit.data.transforms import load_pixels
from toolkit.errors import DatasetError, JobStopped, ModelError, RunError


class Encoder:
    """A real convolution with stride 8 in the place of a VAE; counts the pictures it sees."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.module = nn.Conv2d(3, 4, 8, stride=8)
        self.batch_sizes: list[int] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        self.batch_sizes.append(len(pixels))
        return self.module(pixels)

    @property
    def hash(self) -> str:
        return module_hash(self.module)


def draw(path: Path, color: int, size: tuple[int, int] = (40, 40)) -> None:
    path.parent.mkdir(exist_ok=True)
    image = Image.new("RGB", size, (color, 0, 255 - color))
    image.paste((color, 255, 9), (0, 0, 7, 13))
    image.save(path)


@pytest.fixture
def scan(tmp_path: Path) -> Callable[..., list[MediaItem]]:
    """Items of four pictures in two buckets."""
    for number in range(4):
        draw(tmp_path / "data" / f"{number}.png", number, (40, 40) if number < 3 else (80, 40))

    def items(**options: object) -> list[MediaItem]:
        defaults = {"resolutions": [32], "size_multiple": 8, "memo": tmp_path / "memo"}
        return scan_dataset(tmp_path / "data", **defaults | options).require_valid().items  # type: ignore[arg-type]

    return items


@pytest.fixture(params=["memory", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "cache" if request.param == "disk" else None


def expected(encoder: Encoder, item: MediaItem) -> Tensor:
    pixels = load_pixels(item.path, item.bucket, item.placement, item.alpha_color)
    return encoder.module(pixels[None])[0].detach()


def test_fill_then_get(scan: Callable[..., list[MediaItem]], folder: Path | None) -> None:
    items, encoder = scan(flip_x=True, num_repeats=2), Encoder()
    cache = LatentCache(folder, encoder.hash)
    assert cache.get(items[0]) is None
    seen: list[tuple[int, int]] = []
    assert cache.fill(items, encoder, progress=lambda done, total: seen.append((done, total))) == 8
    assert encoder.batch_sizes == [1] * 8  # repeats share their latents
    assert seen == [(done, 8) for done in range(1, 9)]
    for item in items:
        latents = cache.get(item)
        assert latents is not None
        assert latents.dtype == torch.float32
        assert not latents.requires_grad
        assert torch.equal(latents, expected(encoder, item))
    assert cache.fill(items, encoder) == 0
    assert cache.notes == []


def test_only_the_disk_outlives_the_object(scan: Callable[..., list[MediaItem]], folder: Path | None) -> None:
    items, encoder = scan(), Encoder()
    LatentCache(folder, encoder.hash).fill(items, encoder)
    again = LatentCache(folder, encoder.hash)
    assert again.fill(items, encoder) == (4 if folder is None else 0)


def test_batches_never_mix_buckets(scan: Callable[..., list[MediaItem]], folder: Path | None) -> None:
    items, encoder = scan(), Encoder()
    cache = LatentCache(folder, encoder.hash)
    cache.fill(items[::-1], encoder, batch_size=2)
    assert sorted(encoder.batch_sizes) == [1, 1, 2]
    for item in items:
        torch.testing.assert_close(cache.get(item), expected(encoder, item))


def test_a_changed_picture_is_encoded_anew(
    scan: Callable[..., list[MediaItem]], folder: Path | None, tmp_path: Path
) -> None:
    before, encoder = scan(), Encoder()
    cache = LatentCache(folder, encoder.hash)
    cache.fill(before, encoder)
    draw(tmp_path / "data" / "1.png", 200)  # same name, same size in pixels
    after = scan()
    assert cache.fill(after, encoder) == 1
    assert torch.equal(cache.get(after[1]), expected(encoder, after[1]))  # type: ignore[arg-type]
    assert not torch.equal(cache.get(after[1]), cache.get(before[1]))  # type: ignore[arg-type]
    (tmp_path / "data" / "1.png").rename(tmp_path / "data" / "renamed.png")
    assert cache.fill(scan(), encoder) == 0  # a name is not content


def test_another_vae_finds_nothing(scan: Callable[..., list[MediaItem]], tmp_path: Path) -> None:
    items, first, second = scan(), Encoder(0), Encoder(1)
    assert first.hash != second.hash
    LatentCache(tmp_path / "cache", first.hash).fill(items, first)
    cache = LatentCache(tmp_path / "cache", second.hash)
    assert [cache.get(item) for item in items] == [None] * 4
    assert cache.fill(items, second) == 4
    assert torch.equal(cache.get(items[0]), expected(second, items[0]))  # type: ignore[arg-type]
    assert LatentCache(tmp_path / "cache", first.hash).fill(items, first) == 0  # both are kept


def test_everything_latents_depend_on_is_in_the_key(scan: Callable[..., list[MediaItem]]) -> None:
    item = scan()[0]
    cache = LatentCache(None, "vae")
    others = [
        replace(item, sha256="other"),
        replace(item, bucket=Bucket(32, 40)),
        replace(item, alpha_color=(0, 0, 0)),
        *(
            replace(item, placement=replace(item.placement, **{name: value}))
            for name, value in {
                "scaled_width": 99,
                "scaled_height": 99,
                "left": 1,
                "top": 1,
                "flip_x": True,
                "flip_y": True,
            }.items()
        ),
    ]
    keys = [cache.key(other) for other in [item, *others]] + [LatentCache(None, "other").key(item)]
    assert len(set(keys)) == len(keys)
    same = replace(item, id="x", path=Path("elsewhere.png"), caption="x", loss_multiplier=2.0)
    assert cache.key(same) == cache.key(item)


def damage_cut(data: bytes) -> bytes:
    return data[: len(data) - 5]


def damage_empty(data: bytes) -> bytes:
    return b""


def damage_header(data: bytes) -> bytes:
    return b"\xff" * 16 + data[16:]


def damage_one_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def damage_version(data: bytes) -> bytes:
    return data.replace(b'"schema_version":"1"', b'"schema_version":"0"')


@pytest.mark.parametrize("damage", [damage_cut, damage_empty, damage_header, damage_one_bit, damage_version])
def test_a_damaged_file_is_noticed_and_made_anew(
    scan: Callable[..., list[MediaItem]], tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    items, encoder = scan(), Encoder()
    LatentCache(tmp_path / "cache", encoder.hash).fill(items, encoder)
    cache = LatentCache(tmp_path / "cache", encoder.hash)
    path = cache.path(items[2])
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    assert cache.get(items[2]) is None
    assert str(path) in cache.notes[0]
    assert cache.fill(items, encoder) == 1
    assert torch.equal(cache.get(items[2]), expected(encoder, items[2]))  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", [damage_cut, damage_one_bit])
def test_damage_that_shows_amid_a_run_is_made_good_there(
    scan: Callable[..., list[MediaItem]],
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latent_cache, "KEEP_BYTES", 0)
    items, encoder, told = scan(), Encoder(), list[str]()
    LatentCache(tmp_path / "cache", encoder.hash).fill(items, encoder)
    cache = LatentCache(tmp_path / "cache", encoder.hash, tell=told.append)
    path = cache.path(items[2])
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert cache.fill(items, encoder) == 0  # names are enough to start
    assert torch.equal(cache.get(items[2]), expected(encoder, items[2]))  # type: ignore[arg-type]
    assert len(told) == 1 and str(path) in told[0]
    assert LatentCache(tmp_path / "cache", encoder.hash).get(items[2]) is not None  # whole again
    path.write_bytes(damage(whole))
    items[2].path.unlink()  # and now the picture is gone as well
    with pytest.raises(DatasetError, match=r"2\.png"):
        cache.get(items[2])


def test_a_start_reads_no_entry(
    scan: Callable[..., list[MediaItem]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, encoder = scan(), Encoder()
    LatentCache(tmp_path / "cache", encoder.hash).fill(items, encoder)
    cache = LatentCache(tmp_path / "cache", encoder.hash)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", interrupted)
        assert cache.fill(items, encoder) == 0
        with pytest.raises(KeyboardInterrupt):
            cache.get(items[0])


def test_two_processes_share_the_work(scan: Callable[..., list[MediaItem]], tmp_path: Path) -> None:
    items, encoder, other = scan(), Encoder(), Encoder()
    fast = LatentCache(tmp_path / "cache", encoder.hash)

    def overtaken(pixels: Tensor) -> Tensor:
        if not encoder.batch_sizes:
            fast.fill(items, other)
        return encoder(pixels)

    cache = LatentCache(tmp_path / "cache", encoder.hash)
    count = cache.fill(items, overtaken)
    assert count < 4  # what was decoded ahead already is encoded all the same
    assert count == len(encoder.batch_sizes)
    assert all(torch.equal(cache.get(i), expected(encoder, i)) for i in items)  # type: ignore[arg-type]


def test_entries_can_be_mapped(scan: Callable[..., list[MediaItem]], tmp_path: Path) -> None:
    items, encoder = scan(), Encoder()
    cache = LatentCache(tmp_path / "cache", encoder.hash)
    cache.fill(items, encoder)
    path = cache.path(items[0])
    length = int.from_bytes(path.read_bytes()[:8], "little")
    mapped = numpy.memmap(path, numpy.float32, "r", offset=8 + length, shape=(4, 4, 4))
    assert (mapped == cache.get(items[0]).numpy()).all()  # type: ignore[union-attr]


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path: Path) -> None:
    TensorStore(tmp_path).put("ab1", {"x": torch.zeros(3)})
    old, young = tmp_path / "ab" / ".ab2.0.tmp", tmp_path / "ab" / ".ab3.0.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert TensorStore(tmp_path).present(["ab1", "ab2", "cd1"]) == {"ab1"}
    assert not old.exists() and young.exists()


def test_a_store_keeps_in_memory_what_was_used_last(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, keep_bytes=24)
    for key in ("aa", "bb"):
        store.put(key, {"x": torch.zeros(3)})
    assert store.get("aa") is not None  # used last: the next one drives out bb
    store.put("cc", {"x": torch.ones(3)})
    shutil.rmtree(tmp_path)
    assert store.get("bb") is None
    assert [store.get(key)["x"][0].item() for key in ("aa", "cc")] == [0.0, 1.0]  # type: ignore[index]
    store.put("dd", {"x": torch.zeros(7)})  # larger than all that is kept
    assert store.get("aa") is not None


def test_entries_of_the_first_version_are_found(tmp_path: Path) -> None:
    """Written by hand as version 1 wrote them, so that a change of the format shows."""
    latents = torch.arange(4.0)
    digest = hashlib.sha256(b"latents torch.float32 (4,)\n" + latents.numpy().tobytes()).hexdigest()
    (tmp_path / "ab").mkdir()
    metadata = {"schema_version": "1", "key": "abcd", "digest": digest}
    save_file({"latents": latents}, tmp_path / "ab" / "abcd.safetensors", metadata)
    store = TensorStore(tmp_path)
    assert store.present(["abcd"]) == {"abcd"}
    assert torch.equal(store.get("abcd")["latents"], latents)  # type: ignore[index]


def test_the_file_of_another_picture_is_not_taken(
    scan: Callable[..., list[MediaItem]], tmp_path: Path
) -> None:
    items, encoder = scan(), Encoder()
    LatentCache(tmp_path / "cache", encoder.hash).fill(items, encoder)
    cache = LatentCache(tmp_path / "cache", encoder.hash)
    cache.path(items[0]).write_bytes(cache.path(items[1]).read_bytes())
    assert cache.get(items[0]) is None


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_files_are_renamed_into_place(
    scan: Callable[..., list[MediaItem]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, encoder = scan(), Encoder()
    cache = LatentCache(tmp_path / "cache", encoder.hash)
    with monkeypatch.context() as patch:
        patch.setattr(tensor_store, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):  # killed between writing and renaming
            cache.fill(items, encoder)
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []
    assert cache.fill(items, encoder) == 4
    path = cache.path(items[0])
    assert path.parent.name == path.stem[:2]
    with safe_open(path, "pt") as file:
        assert file.metadata()["schema_version"] == "1"


def test_a_cache_that_cannot_be_written_is_a_run_error(
    scan: Callable[..., list[MediaItem]], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    encoder = Encoder()
    with pytest.raises(RunError, match="cannot be written"):
        LatentCache(tmp_path / "cache", encoder.hash).fill(scan(), encoder)


def test_not_finite_latents_are_refused_by_name(
    scan: Callable[..., list[MediaItem]], folder: Path | None
) -> None:
    items = scan()
    cache = LatentCache(folder, "vae")
    with pytest.raises(ModelError, match=r"0\.png.*not finite"):
        cache.fill(items, lambda pixels: pixels.new_full((len(pixels), 4, 4, 4), float("nan")))
    assert cache.get(items[0]) is None


def test_a_failure_of_the_encoder_names_the_file(scan: Callable[..., list[MediaItem]]) -> None:
    def failing(pixels: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        LatentCache(None, "vae").fill(scan(), failing)
    assert "0.png" in caught.value.__notes__[0]


def test_a_picture_that_breaks_before_its_turn_is_named(
    scan: Callable[..., list[MediaItem]], tmp_path: Path
) -> None:
    items = scan()
    (tmp_path / "data" / "2.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"2\.png.*empty"):
        LatentCache(None, "vae").fill(items, Encoder())


def test_latents_of_a_picture_that_changed_since_the_scan_are_not_kept(
    scan: Callable[..., list[MediaItem]], tmp_path: Path
) -> None:
    items = scan()
    draw(tmp_path / "data" / "0.png", 99)
    cache = LatentCache(None, "vae")
    with pytest.raises(DatasetError, match=r"0\.png.*changed"):
        cache.fill(items, Encoder())
    assert cache.get(items[0]) is None


def test_stopping_keeps_what_is_done(scan: Callable[..., list[MediaItem]], folder: Path | None) -> None:
    items, encoder = scan(), Encoder()
    cache = LatentCache(folder, encoder.hash)
    with pytest.raises(JobStopped, match="2 of 4"):
        cache.fill(items, encoder, should_stop=lambda: len(encoder.batch_sizes) == 2)
    assert cache.fill(items, encoder) == 2
