"""How fast the latent cache fills, against bare decoding, resizing and encoding of the same pictures.

    python -m testing.benchmarks.bench_latent_cache

The bare loop opens each picture with Pillow, resizes and cuts it, encodes it and keeps the latents in a
list. The cache does that too, decoding ahead on a thread, and besides makes sure that the picture is the
scanned one, refuses what is not finite and writes a checked file. Both must give the same latents to the
bit.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from testing.benchmarks.measuring import AGAIN, BARE, make_row, report, take_turns
from toolkit.data.items import MediaItem
from toolkit.data.latent_cache import LatentCache
from toolkit.data.scan import scan_dataset
from toolkit.seeding import keyed_generator
from toolkit.stable_diffusion_model import StableDiffusion

GOAL = 0.9


def draw_pictures(folder: Path, count: int, side: int) -> None:
    """Photograph-like JPEGs: soft shapes under grain."""
    folder.mkdir()
    for index in range(count):
        rough = torch.rand((6, 8, 3), generator=keyed_generator("picture", index)).mul(255).byte()
        width = side if index % 2 else side * 3 // 4
        soft = Image.fromarray(rough.numpy()).resize((width, side * 3 // 4), Image.Resampling.BICUBIC)
        grain = torch.randn((side * 3 // 4, width, 3), generator=keyed_generator("grain", index)) * 6
        pixels = numpy.clip(numpy.asarray(soft, dtype=numpy.float32) + grain.numpy(), 0, 255)
        Image.fromarray(pixels.astype(numpy.uint8)).save(folder / f"{index}.jpg", quality=92)


def bare(items: list[MediaItem], encode: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The same work without anything around it."""
    found = []
    for item in items:
        place, bucket = item.placement, item.bucket
        with Image.open(item.path) as image:
            scaled = image.convert("RGB").resize(
                (place.scaled_width, place.scaled_height), Image.Resampling.LANCZOS
            )
        box = (place.left, place.top, place.left + bucket.width, place.top + bucket.height)
        pixels = torch.from_numpy(numpy.array(scaled.crop(box), dtype=numpy.float32)).permute(2, 0, 1)
        with torch.no_grad():
            found.append(encode((pixels / 127.5 - 1).unsqueeze(0).contiguous())[0].float())
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure and print; exit code 1 if a goal is missed or a latent differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny-sd")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--side", type=int, default=1024, help="of the pictures' files, in pixels")
    parser.add_argument("--resolution", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.pictures, arguments.side, arguments.resolution, arguments.rounds = 4, 128, 64, 1
    model = StableDiffusion.load(arguments.model).architecture
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw_pictures(root / "data", arguments.pictures, arguments.side)
        scan = scan_dataset(
            root / "data", resolutions=[arguments.resolution], size_multiple=8, memo=root / "memo"
        )
        items = sorted(scan.require_valid().items, key=lambda item: item.bucket)
        names = (root / f"cache{number}" for number in itertools.count())

        def fill() -> LatentCache:
            cache = LatentCache(next(names), "vae")
            cache.fill(items, model.encode_images)
            return cache

        cache, wanted = fill(), bare(items, model.encode_images)
        equal = all(torch.equal(cache.get(i), w) for i, w in zip(items, wanted, strict=True))  # type: ignore[arg-type]
        variants = {
            "ours": fill,
            BARE: lambda: bare(items, model.encode_images),
            AGAIN: lambda: bare(items, model.encode_images),
        }
        times = take_turns(variants, rounds=arguments.rounds, warm_up=0 if arguments.quick else 1)
    parts = (times["ours"], times[BARE], times[AGAIN])
    rows = [make_row("filling the latent cache (speed)", *parts, goal=GOAL, speed=True)]
    code = report(rows, latents_equal=equal)
    return 0 if arguments.quick and equal else max(code, int(not equal))


if __name__ == "__main__":
    sys.exit(main())
