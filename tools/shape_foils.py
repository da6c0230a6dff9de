"""Pictures that are nearly, but not, one of the drawn shapes: what a strict judge of drawings must reject.

Legend: B pictures, H W rows and columns.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from PIL import Image, ImageDraw, ImageFilter
from torch import Generator, Tensor

from toolkit.seeding import keyed_random
from tools.draw_shapes import (
    BACKGROUNDS,
    COLOURS,
    RADII,
    REFERENCE_SIZE,
    SHAPES,
    SUPERSAMPLING,
    fits,
    make_drawing,
    paint,
    regular_polygon,
    shape_mask,
)

Point = tuple[float, float]
SIDE = REFERENCE_SIZE * SUPERSAMPLING


def _blank() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    mask = Image.new("L", (SIDE, SIDE), 0)
    return mask, ImageDraw.Draw(mask)


def _polygon(points: list[Point]) -> Image.Image:
    mask, draw = _blank()
    draw.polygon(points, fill=255)
    return mask


def rounded_square(x: float, y: float, radius: float, draw: random.Random) -> Image.Image:
    """Between a square and a circle."""
    mask, brush = _blank()
    half = radius * 0.9
    corner = half * draw.uniform(0.35, 0.6)
    brush.rounded_rectangle((x - half, y - half, x + half, y + half), corner, fill=255)
    return mask


def ellipse(x: float, y: float, radius: float, draw: random.Random) -> Image.Image:
    """A circle pressed flat, upright or lying."""
    mask, brush = _blank()
    wide, high = radius, radius * draw.uniform(0.45, 0.72)
    if draw.random() < 0.5:
        wide, high = high, wide
    brush.ellipse((x - wide, y - high, x + wide, y + high), fill=255)
    return mask


def blob(x: float, y: float, radius: float, draw: random.Random) -> Image.Image:
    """A disc with two to five soft bulges."""
    waves = [(n, draw.uniform(0.1, 0.3) / math.sqrt(n), draw.uniform(0, 2 * math.pi)) for n in (2, 3, 4, 5)]
    points = []
    for i in range(72):
        angle = 2 * math.pi * i / 72
        reach = radius * 0.85 * (1 + sum(size * math.sin(n * angle + at) for n, size, at in waves))
        points.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
    return _polygon(points)


def scrap(x: float, y: float, radius: float, draw: random.Random) -> Image.Image:
    """A polygon with five to eight corners at uneven distances."""
    corners = draw.randint(5, 8)
    return _polygon(
        regular_polygon(x, y, [radius * draw.uniform(0.35, 1.1) for _ in range(corners)], draw.random())
    )


def trapezoid(x: float, y: float, radius: float, draw: random.Random) -> Image.Image:
    """A triangle without its tip, either way up."""
    top, side = radius * draw.uniform(0.35, 0.6), draw.choice([-1, 1])
    low, high = y + side * radius * 0.8, y - side * radius * 0.8
    return _polygon([(x - top, high), (x + top, high), (x + radius, low), (x - radius, low)])


def half_disc(x: float, y: float, radius: float, draw: random.Random) -> Image.Image:
    """Half a circle, cut at any angle."""
    mask, brush = _blank()
    start = draw.uniform(0, 360)
    brush.pieslice(
        (x - radius, y - radius, x + radius, y + radius), start, start + draw.uniform(150, 250), fill=255
    )
    return mask


def bar(x: float, y: float, radius: float, draw: random.Random) -> Image.Image:
    """A rectangle twice as long as wide or more."""
    mask, brush = _blank()
    wide, high = radius, radius * draw.uniform(0.25, 0.6)
    if draw.random() < 0.5:
        wide, high = high, wide
    brush.rectangle((x - wide, y - high, x + wide, y + high), fill=255)
    return mask


def lopsided_star(x: float, y: float, radius: float, draw: random.Random) -> Image.Image:
    """A star with a wrong number of rays, or with rays of unequal length."""
    if draw.random() < 0.5:
        rays = draw.choice([3, 4, 7])
        return _polygon(regular_polygon(x, y, [radius * 1.1, radius * 0.4] * rays))
    radii = [radius * (draw.uniform(0.4, 1.2) if i % 2 == 0 else 0.45) for i in range(10)]
    return _polygon(regular_polygon(x, y, radii))


def several(x: float, y: float, radius: float, draw: random.Random) -> Image.Image:
    """Two or three small discs instead of one shape."""
    mask, brush = _blank()
    for _ in range(draw.randint(2, 3)):
        cx, cy, r = (
            x + draw.uniform(-1, 1) * radius,
            y + draw.uniform(-1, 1) * radius,
            radius * draw.uniform(0.3, 0.55),
        )
        brush.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)
    return mask


def cut_shape(x: float, y: float, radius: float, draw: random.Random) -> Image.Image:
    """A true shape of which a straight cut has taken a third to a half."""
    mask, brush = _blank()
    # The tip of a triangle is a triangle, and a crescent without its horns is nearly one.
    cuttable = [name for name in SHAPES if name not in ("triangle", "crescent")]
    SHAPES[draw.choice(cuttable)](brush, x, y, radius)
    at, far = radius * draw.uniform(-0.35, 0.1), 3 * radius
    left, top, right, bottom = draw.choice(
        [(-far, -far, at, far), (-at, -far, far, far), (-far, -far, far, at), (-far, -at, far, far)]
    )
    brush.rectangle((x + left, y + top, x + right, y + bottom), fill=0)
    return mask


def two_shapes(x: float, y: float, radius: float, draw: random.Random) -> Image.Image:
    """Two small true shapes side by side or one above the other."""
    mask, brush = _blank()
    away, small = radius * draw.uniform(0.5, 0.75), radius * draw.uniform(0.4, 0.55)
    dx, dy = draw.choice([(away, 0.0), (0.0, away), (away * 0.8, away * 0.8)])
    for side in (-1, 1):
        SHAPES[draw.choice(list(SHAPES))](brush, x + side * dx, y + side * dy, small)
    return mask


def nothing(x: float, y: float, radius: float, draw: random.Random) -> Image.Image:
    """An empty background."""
    return _blank()[0]


FORMS: list[Callable[[float, float, float, random.Random], Image.Image]] = [
    rounded_square, rounded_square, ellipse, blob, blob, scrap, trapezoid, half_disc, bar, lopsided_star,
    several, cut_shape, cut_shape, two_shapes, nothing,
]  # fmt: skip


def make_foil(index: int, seed: int = 0) -> Image.Image:
    """Foil number `index`, RGB, 32 px; a pure function of its arguments."""
    draw = keyed_random("foil", seed, index)
    background = draw.choice(list(BACKGROUNDS))
    colour = draw.choice([name for name in COLOURS if fits(name, background)])
    if draw.random() < 0.2:
        # A true shape, smeared beyond recognition.
        drawing = make_drawing(draw.randrange(10**6), seed, "foil")
        mask = shape_mask(drawing, REFERENCE_SIZE).filter(ImageFilter.GaussianBlur(draw.uniform(3.0, 5.0)))
        return paint(mask, COLOURS[drawing.colour], BACKGROUNDS[drawing.background])
    radius = RADII[draw.choice(["medium", "large", "large"])] * draw.uniform(0.9, 1.05)
    room = REFERENCE_SIZE / 2 - radius - 1
    x, y = (REFERENCE_SIZE / 2 + draw.uniform(-1, 1) * min(room, 3.0) for _ in range(2))
    mask = draw.choice(FORMS)(x * SUPERSAMPLING, y * SUPERSAMPLING, radius * SUPERSAMPLING, draw)
    return paint(
        mask.resize((REFERENCE_SIZE,) * 2, Image.Resampling.BOX), COLOURS[colour], BACKGROUNDS[background]
    )


def warp(pictures: Tensor, strength: Tensor, generator: Generator, shift: float = 0.0) -> Tensor:
    """pictures (B, 3, H, W) bent by a smooth random field of `strength` (B,) pixels (standard deviation).

    Each is also moved as a whole by up to `shift` pixels in both directions.
    """
    num, _, height, width = pictures.shape
    coarse = torch.randn((num, 2, 5, 5), generator=generator) * strength.view(-1, 1, 1, 1)
    field = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    if shift:
        field = field + shift * (2 * torch.rand((num, 2, 1, 1), generator=generator) - 1)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = (columns + field[:, 0]) * 2 / (width - 1) - 1
    y = (rows + field[:, 1]) * 2 / (height - 1) - 1
    return F.grid_sample(pictures, torch.stack([x, y], -1), padding_mode="border", align_corners=True)
