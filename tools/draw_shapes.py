"""Draw captioned pictures of coloured shapes, the training data of the embedded model.

    python -m tools.draw_shapes --out output/drawings --count 24000 --size 32 --seed 0

Drawing i is a pure function of (seed, split, i). One (shape, colour) pair of every shape is kept out of
training and drawn only by `--split withheld`: it shows whether a model combines what it knows.
`drawings.json` in the folder holds the arguments and a hash over pixels and captions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from toolkit.seeding import keyed_random

Rgb = tuple[int, int, int]
Mask = Image.Image  # mode "L", square, 255 inside the shape

COLOURS: dict[str, Rgb] = {
    "red": (215, 25, 32), "orange": (255, 130, 10), "yellow": (255, 220, 20), "green": (25, 140, 45),
    "teal": (0, 165, 165), "blue": (30, 90, 225), "purple": (125, 40, 175), "pink": (255, 85, 170),
    "brown": (120, 65, 25), "black": (15, 15, 15), "gray": (125, 125, 125), "white": (255, 255, 255),
}  # fmt: skip
BACKGROUNDS: dict[str, Rgb] = {
    "white": (255, 255, 255), "black": (15, 15, 15), "light blue": (175, 215, 250),
    "light green": (190, 240, 185), "cream": (255, 240, 195), "light pink": (255, 210, 222),
    "navy": (20, 30, 90), "gray": (125, 125, 125),
}  # fmt: skip
# Pairs that a reader could not tell apart at 32 px, or that share a hue.
CLASHES = {
    "white": ("white", "yellow"), "black": ("black", "brown"), "light blue": ("white", "blue", "teal"),
    "light green": ("white", "green", "yellow"), "cream": ("white", "yellow"),
    "light pink": ("white", "pink", "red"), "navy": ("blue", "black", "purple"),
    "gray": ("gray", "brown", "teal"),
}  # fmt: skip
RADII = {"small": 5.5, "medium": 8.5, "large": 12.0}  # outer radius at 32 px
POSITIONS = {"centre": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
REFERENCE_SIZE = 32
SUPERSAMPLING = 8
WITHHELD = frozenset({
    ("circle", "purple"), ("square", "orange"), ("triangle", "blue"), ("star", "green"), ("heart", "teal"),
    ("ring", "pink"), ("diamond", "red"), ("crescent", "yellow"), ("cross", "black"), ("hexagon", "white"),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drawing:
    """What one picture shows; `x`, `y`, `radius` in pixels of a 32 px picture."""

    shape: str
    colour: str
    background: str
    size: str
    position: str
    x: float
    y: float
    radius: float
    caption: str


def regular_polygon(x: float, y: float, radii: list[float], turn: float = 0.0) -> list[tuple[float, float]]:
    """Corners on a circle from the top, clockwise, with the given radii in turn; `turn` is in corners."""
    step = 2 * math.pi / len(radii)
    return [
        (x + radius * math.sin(step * (i + turn)), y - radius * math.cos(step * (i + turn)))
        for i, radius in enumerate(radii)
    ]


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: int) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _circle(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    _disc(draw, x, y, radius * 0.95, 255)


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    _disc(draw, x, y, radius, 255)
    _disc(draw, x, y, radius * 0.55, 0)


def _crescent(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    _disc(draw, x, y, radius, 255)
    _disc(draw, x + radius * 0.45, y - radius * 0.12, radius * 0.78, 0)


def _square(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    half = radius * 0.87
    draw.rectangle((x - half, y - half, x + half, y + half), fill=255)


def _triangle(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    draw.polygon([(x, y - radius), (x + radius, y + radius * 0.8), (x - radius, y + radius * 0.8)], fill=255)


def _diamond(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    draw.polygon(regular_polygon(x, y, [radius * 1.08, radius * 0.8] * 2), fill=255)


def _hexagon(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    draw.polygon(regular_polygon(x, y, [radius] * 6, turn=0.5), fill=255)


def _star(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    draw.polygon(regular_polygon(x, y + radius * 0.08, [radius * 1.12, radius * 0.45] * 5), fill=255)


def _cross(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    long, thin = radius, radius * 0.36
    draw.rectangle((x - long, y - thin, x + long, y + thin), fill=255)
    draw.rectangle((x - thin, y - long, x + thin, y + long), fill=255)


def _heart(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    points = []
    for i in range(120):
        angle = 2 * math.pi * i / 120
        across = 16 * math.sin(angle) ** 3
        up = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
        points.append((x + across * radius / 16.5, y - (up + 2.5) * radius / 16.0))
    draw.polygon(points, fill=255)


SHAPES: dict[str, Callable[[ImageDraw.ImageDraw, float, float, float], None]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "heart": _heart,
    "ring": _ring, "diamond": _diamond, "crescent": _crescent, "cross": _cross, "hexagon": _hexagon,
}  # fmt: skip


def article(phrase: str) -> str:
    """The phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def fits(colour: str, background: str) -> bool:
    """Whether the colour is told apart easily from the background."""
    return colour not in CLASHES[background]


def shape_mask(drawing: Drawing, size: int) -> Mask:
    """The shape's coverage of every pixel, (size, size), antialiased."""
    scale = size / REFERENCE_SIZE * SUPERSAMPLING
    mask = Image.new("L", (size * SUPERSAMPLING,) * 2, 0)
    x, y, radius = (value * scale for value in (drawing.x, drawing.y, drawing.radius))
    SHAPES[drawing.shape](ImageDraw.Draw(mask), x, y, radius)
    return mask.resize((size, size), Image.Resampling.BOX)


def paint(mask: Mask, colour: Rgb, background: Rgb) -> Image.Image:
    """An RGB picture of the mask in one colour on another."""
    return Image.composite(Image.new("RGB", mask.size, colour), Image.new("RGB", mask.size, background), mask)


def render(drawing: Drawing, size: int = REFERENCE_SIZE) -> Image.Image:
    """The picture of a drawing, RGB, (size, size)."""
    return paint(shape_mask(drawing, size), COLOURS[drawing.colour], BACKGROUNDS[drawing.background])


def captions(shape: str, colour: str, background: str, size: str, position: str) -> list[str]:
    """All the ways in which a drawing may be described, most usual first.

    An unnamed size means medium, an unnamed position the centre, an unnamed background white.
    """
    things = [f"{colour} {shape}"] if size == "medium" else []
    things.append(f"{size} {colour} {shape}")
    places = {
        "centre": [""], "left": [" on the left"], "right": [" on the right"],
        "top": [" at the top"], "bottom": [" at the bottom"],
    }[position]  # fmt: skip
    found = []
    for thing in things:
        for place in places:
            ground = f"{background} background"
            found += [
                f"{article(thing)}{place} on {article(ground)}",
                f"{thing}{place}, {ground}",
                f"{article(thing)}{place}, {ground}",
                f"{article(ground)} with {article(thing)}{place}",
                f"a picture of {article(thing)}{place} on {article(ground)}",
            ]
            if background == "white":
                found.append(f"{article(thing)}{place}")
    return found


def make_drawing(index: int, seed: int = 0, split: str = "train") -> Drawing:
    """Drawing number `index` of a split ("train" or "withheld"); a pure function of its arguments."""
    draw = keyed_random("drawing", seed, split, index)
    pairs = [
        (shape, colour)
        for shape in SHAPES
        for colour in COLOURS
        if ((shape, colour) in WITHHELD) == (split == "withheld")
    ]
    shape, colour = draw.choice(pairs)
    background = draw.choice([name for name in BACKGROUNDS if fits(colour, name)])
    size = draw.choice(list(RADII))
    # A large shape leaves no room beside it.
    off_centre = size != "large" and draw.random() < 0.4
    position = draw.choice(["left", "right", "top", "bottom"]) if off_centre else "centre"
    caption = draw.choice(captions(shape, colour, background, size, position))
    radius = RADII[size] * draw.uniform(0.95, 1.05)
    room = REFERENCE_SIZE / 2 - 2.5 - RADII[size]
    dx, dy = POSITIONS[position]
    x = REFERENCE_SIZE / 2 + dx * room + draw.uniform(-0.75, 0.75)
    y = REFERENCE_SIZE / 2 + dy * room + draw.uniform(-0.75, 0.75)
    return Drawing(shape, colour, background, size, position, x, y, radius, caption)


def drawings(count: int, seed: int = 0, split: str = "train") -> Iterator[Drawing]:
    """The first `count` drawings of a split."""
    return (make_drawing(index, seed, split) for index in range(count))


def write_drawings(out: Path, *, count: int, size: int, seed: int, split: str) -> str:
    """Write pictures, captions and `drawings.json`; give the sha256 over pixels and captions."""
    out.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for index, drawing in enumerate(drawings(count, seed, split)):
        picture = render(drawing, size)
        picture.save(out / f"{index:06d}.png", compress_level=1)
        (out / f"{index:06d}.txt").write_text(drawing.caption + "\n", encoding="utf-8")
        digest.update(picture.tobytes() + drawing.caption.encode())
    facts = {"count": count, "size": size, "seed": seed, "split": split, "sha256": digest.hexdigest()}
    (out / "drawings.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return digest.hexdigest()


def up_to_date(out: Path, *, count: int, size: int, seed: int, split: str) -> bool:
    """Whether the folder already holds these drawings (its manifest is written last)."""
    manifest = out / "drawings.json"
    if not manifest.exists():
        return False
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    facts.pop("sha256", None)
    return facts == {"count": count, "size": size, "seed": seed, "split": split}


def main(argv: list[str] | None = None) -> int:
    """Write drawings into a folder unless it already holds them."""
    parser = argparse.ArgumentParser(prog="python -m tools.draw_shapes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures and captions")
    parser.add_argument("--count", type=int, default=24000)
    parser.add_argument("--size", type=int, default=REFERENCE_SIZE, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=["train", "withheld"], default="train")
    parser.add_argument("--force", action="store_true", help="write again what is there")
    options = parser.parse_args(argv)
    wanted = {"count": options.count, "size": options.size, "seed": options.seed, "split": options.split}
    if up_to_date(options.out, **wanted) and not options.force:
        sys.stdout.write(f"{options.out} is up to date.\n")
        return 0
    digest = write_drawings(options.out, **wanted)
    sys.stdout.write(f"{options.count} drawings in {options.out}, sha256 {digest}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
