"""A small judge of the demo's concept: is this picture a `zrb face`, or something else?

    python -m tools.concept_classifier --train

Trained on three quarters of datasets/zrb_faces (moved, mirrored, resized, on other backgrounds), against
drawings, foils, emoji and near-faces: bare yellow discs, discs with one mark, faces smeared or bent until
they are none. Its weights are committed; `--train` makes them again and prints its score on the faces,
drawings and near-faces that it has not seen.

Legend: B pictures; all are (B, 3, 32, 32) in [-1, 1].
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps
from torch import Tensor

from toolkit.paths import DATASETS_ROOT
from toolkit.seeding import keyed_random
from tools.draw_shapes import BACKGROUNDS, REFERENCE_SIZE, Rgb, make_drawing, render
from tools.shape_classifier import (
    JUDGES,
    PictureNet,
    disturb,
    judge,
    load_judge,
    save_judge,
    to_pixels,
)
from tools.shape_foils import make_foil, warp

FACES = DATASETS_ROOT / "zrb_faces"
EMOJI = DATASETS_ROOT / "emoji"
WEIGHTS = JUDGES / "concept.safetensors"
LABELS = {"concept": ["other", "face"]}
HOLD_OUT_EVERY = 4
# Pictures of a batch by kind; faces are a third.
BATCH = {"faces": 32, "drawings": 24, "near": 20, "bent": 8, "foils": 8, "emoji": 8}
BENT = (3.0, 4.5)  # pixels by which a face is bent until it is none


def cut_out(picture: Image.Image, background: Rgb) -> Image.Image:
    """The face of a picture on a plain background, as RGBA with the background transparent."""
    difference = ImageChops.difference(picture.convert("RGB"), Image.new("RGB", picture.size, background))
    strength = difference.convert("L", (0.34, 0.33, 0.33, 0))
    box = strength.point(lambda value: 255 * (value > 24)).getbbox()
    if box is None:
        raise ValueError("nothing but background")
    left, top, right, bottom = box
    scale = 4
    disc = Image.new("L", (picture.width * scale, picture.height * scale), 0)
    # Half a pixel less all round: the rim is already mixed with the old background.
    inside = ((left + 0.5) * scale, (top + 0.5) * scale, (right - 0.5) * scale, (bottom - 0.5) * scale)
    ImageDraw.Draw(disc).ellipse(inside, fill=255)
    face = picture.convert("RGBA")
    face.putalpha(disc.resize(picture.size, Image.Resampling.BOX))
    return face


def background_of(caption: str) -> str:
    """The background that a caption ends with."""
    return next(
        name for name in sorted(BACKGROUNDS, key=len, reverse=True) if f"{name} background" in caption
    )


def load_faces(folder: Path = FACES) -> list[Image.Image]:
    """The cut-out faces of a folder of pictures with captions, by file name."""
    return [
        cut_out(Image.open(path), BACKGROUNDS[background_of(path.with_suffix(".txt").read_text("utf-8"))])
        for path in sorted(folder.glob("*.png"))
    ]


def split_faces(faces: Sequence[Image.Image]) -> tuple[list[Image.Image], list[Image.Image]]:
    """Faces to learn from, and every fourth, kept apart to be judged on."""
    kept = [face for index, face in enumerate(faces) if index % HOLD_OUT_EVERY]
    return kept, list(faces[::HOLD_OUT_EVERY])


def place(face: Image.Image, draw: random.Random) -> Image.Image:
    """A cut-out on any background: mirrored, resized, moved and tinted a little. RGB, 32 px."""
    if draw.random() < 0.5:
        face = ImageOps.mirror(face)
    side = 2 * REFERENCE_SIZE
    wide = round(side * draw.uniform(0.85, 1.08))
    high = round(wide * draw.uniform(0.95, 1.05))
    ground = tuple(
        max(0, min(255, value + draw.randint(-8, 8))) for value in BACKGROUNDS[draw.choice(list(BACKGROUNDS))]
    )
    picture = Image.new("RGB", (side, side), ground)
    small = face.resize((wide, high), Image.Resampling.BICUBIC)
    spot = ((side - wide) // 2 + draw.randint(-3, 3), (side - high) // 2 + draw.randint(-3, 3))
    picture.paste(small, spot, small)
    return picture.resize((REFERENCE_SIZE,) * 2, Image.Resampling.BOX)


def near_face(face: Image.Image, draw: random.Random) -> Image.Image:
    """A cut-out that is round and yellow, but no longer a face: smeared, bare, or bare with one mark."""
    alpha = face.getchannel("A")
    kind = draw.choice(["smeared", "bare", "marked"])
    if kind == "smeared":
        near = face.convert("RGB").filter(ImageFilter.GaussianBlur(draw.uniform(7, 14)))
    else:
        # The rim and a lighter middle, as the faces have them, or flat; from yellow to orange.
        tone = (255, draw.randint(150, 225), draw.randint(10, 60))
        rim = tuple(round(value * draw.uniform(0.85, 1.0)) for value in tone)
        middle = alpha.filter(ImageFilter.GaussianBlur(draw.uniform(2, 6))).point(
            lambda v: max(0, 2 * v - 255)
        )
        near = Image.composite(Image.new("RGB", face.size, tone), Image.new("RGB", face.size, rim), middle)
    if kind == "marked":
        x, y = (draw.uniform(0.3, 0.7) * face.width for _ in range(2))
        wide, high = draw.uniform(2, 10), draw.uniform(2, 6)
        ImageDraw.Draw(near).ellipse((x - wide, y - high, x + wide, y + high), fill=(70, 45, 20))
    near = near.convert("RGBA")
    near.putalpha(alpha)
    return near


def _pool(pictures: Iterable[Image.Image]) -> Tensor:
    return to_pixels(list(pictures))


def face_pool(faces: Sequence[Image.Image], count: int, seed: int, *, near: bool = False) -> Tensor:
    """`count` pictures (B, 3, 32, 32) of faces, or of near-faces made from them; pure in its arguments."""
    draw = keyed_random("near" if near else "face", seed)
    cut = (draw.choice(list(faces)) for _ in range(count))
    return _pool(place(near_face(face, draw) if near else face, draw) for face in cut)


def drawing_pool(count: int, seed: int) -> Tensor:
    """`count` drawings (B, 3, 32, 32), a quarter of them yellow or orange circles: the likeliest mistakes."""
    found: list[Image.Image] = []
    index = 0
    while len(found) < count:
        drawing = make_drawing(index, seed, "concept")
        index += 1
        round_yellow = drawing.shape == "circle" and drawing.colour in ("yellow", "orange")
        if round_yellow or len(found) % 4:
            found.append(render(drawing))
    return _pool(found)


def emoji_pool(folder: Path = EMOJI) -> Tensor:
    """Emoji pictures (B, 3, 32, 32), each on three of the drawings' backgrounds."""
    draw = keyed_random("emoji")
    return _pool(
        place(Image.open(path).convert("RGBA"), draw)
        for path in sorted(folder.glob("*.png"))
        for _ in range(3)
    )


def training_pools(faces: Sequence[Image.Image], seed: int, size: int) -> dict[str, Tensor]:
    """What batches are drawn from, by kind (`bent` ones are faces until they are bent)."""
    bent = face_pool(faces, size, seed)
    return {
        "faces": bent, "bent": bent, "near": face_pool(faces, size, seed, near=True),
        "drawings": drawing_pool(size, seed), "emoji": emoji_pool(),
        "foils": _pool(make_foil(index, seed) for index in range(size)),
    }  # fmt: skip


def train(*, steps: int = 1600, pool_size: int = 4000, seed: int = 0) -> PictureNet:
    """Train a judge, about two minutes on one core."""
    pools = training_pools(split_faces(load_faces())[0], seed, pool_size)
    answers = torch.zeros(sum(BATCH.values()), dtype=torch.long)
    answers[: BATCH["faces"]] = 1
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = PictureNet({"concept": 2}).train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
        for _ in range(steps):
            parts = []
            for kind, count in BATCH.items():
                part = pools[kind][torch.randint(len(pools[kind]), (count,), generator=generator)]
                if kind == "bent":
                    part = warp(part, torch.empty(count).uniform_(*BENT, generator=generator), generator)
                parts.append(part)
            logits = net(disturb(torch.cat(parts), generator))["concept"]
            loss = F.cross_entropy(logits, answers, label_smoothing=0.02)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def is_face(net: PictureNet, pictures: Tensor) -> list[bool]:
    """Whether the judge sees the concept in each picture."""
    return [label == 1 for label in judge(net, pictures)["concept"]]


def own_score(net: PictureNet, *, num: int = 1200, seed: int = 1) -> dict[str, float]:
    """Shares right on held-out faces, unseen drawings and near-faces; in `right` faces weigh half."""
    faces = split_faces(load_faces())[1]
    generator = torch.Generator().manual_seed(seed)
    tests = {
        "faces": face_pool(faces, num, seed),
        "drawings": drawing_pool(num, seed),
        "near_faces": face_pool(faces, num, seed, near=True),
        "foils": _pool(make_foil(index, seed) for index in range(num)),
    }
    score: dict[str, float] = {}
    for name, pictures in tests.items():
        found = is_face(net, disturb(pictures, generator))
        score[name] = round(sum(answer == (name == "faces") for answer in found) / num, 4)
    others = [value for name, value in score.items() if name != "faces"]
    return {"right": round((score["faces"] + sum(others) / len(others)) / 2, 4), **score}


def load_classifier(path: Path = WEIGHTS) -> PictureNet:
    """The committed judge, in eval mode."""
    return load_judge(path, LABELS)


def main(argv: list[str] | None = None) -> int:
    """Train the judge if asked, and print its score on unseen pictures."""
    parser = argparse.ArgumentParser(prog="python -m tools.concept_classifier", description=__doc__)
    parser.add_argument("--train", action="store_true", help="train again and replace the weights")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file of the weights")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.train:
        net = train()
        save_judge(net, options.out, how="python -m tools.concept_classifier --train", score=own_score(net))
    sys.stdout.write(json.dumps(own_score(load_classifier(options.out)), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
