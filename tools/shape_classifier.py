"""A small judge of 32 px drawings: which shape, colour and background, or no proper shape at all.

    python -m tools.shape_classifier --train

Trained on the drawings of tools/draw_shapes.py and, as `none`, on foils: near-shapes, blobs, smears and
drawings bent out of form. Its weights are committed; `--train` makes them again and prints its own score on
drawings and foils that it has not seen.

Legend: B pictures; all are (B, 3, 32, 32) in [-1, 1].
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from toolkit.paths import ASSETS_ROOT
from tools.draw_shapes import BACKGROUNDS, COLOURS, REFERENCE_SIZE, SHAPES, Drawing, make_drawing, render
from tools.shape_foils import make_foil, warp

JUDGES = ASSETS_ROOT / "judges"
WEIGHTS = JUDGES / "shapes.safetensors"
NONE = "none"
LABELS: dict[str, list[str]] = {
    "shape": [*SHAPES, NONE],
    "colour": list(COLOURS),
    "background": list(BACKGROUNDS),
}
WIDTHS = (32, 48, 64)
# A picture bent by this many pixels has lost its shape; the model's own slight wobble must pass.
GENTLE, SPOILT = 0.35, (1.8, 3.0)


class PictureNet(nn.Module):
    """Three convolutions that halve the sides, and one linear layer for each question asked of a picture."""

    def __init__(self, num_labels: dict[str, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in WIDTHS:
            layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.GroupNorm(4, width), nn.SiLU()]
            channels = width
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1))
        features = channels * (REFERENCE_SIZE // 2 ** len(WIDTHS)) ** 2
        self.heads = nn.ModuleDict({name: nn.Linear(features, num) for name, num in num_labels.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits (B, labels) of every question."""
        features = self.body(pictures)
        return {name: head(features) for name, head in self.heads.items()}


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures -> (B, 3, H, W) float32 in [-1, 1]; any other size is reduced to 32 px."""
    side = (REFERENCE_SIZE, REFERENCE_SIZE)
    small = [p if p.size == side else p.resize(side, Image.Resampling.BOX) for p in pictures]
    stacked = np.stack([np.asarray(picture.convert("RGB")) for picture in small])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def labels_of(drawings: Sequence[Drawing]) -> dict[str, Tensor]:
    """Right answers (B,) for drawings."""
    return {
        name: torch.tensor([values.index(getattr(drawing, name)) for drawing in drawings])
        for name, values in LABELS.items()
    }


@torch.no_grad()
def judge(net: PictureNet, pictures: Tensor, batch_size: int = 256) -> dict[str, list[int]]:
    """The index of the likeliest label for each picture and question."""
    net.eval()
    found: dict[str, list[int]] = {name: [] for name in net.heads}
    for part in pictures.split(batch_size):
        for name, logits in net(part).items():
            found[name] += logits.argmax(1).tolist()
    return found


def load_judge(path: Path, labels: Mapping[str, Sequence[str]]) -> PictureNet:
    """A judge from its weights, in eval mode, float32."""
    net = PictureNet({name: len(values) for name, values in labels.items()})
    net.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return net.eval()


def save_judge(net: PictureNet, path: Path, *, how: str, score: Mapping[str, float]) -> None:
    """Write the weights in half precision, and beside them how they were made and what they reached."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in net.state_dict().items()}, path)
    path.chmod(0o644)
    facts = {
        "made_by": how,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "score": dict(score),
    }
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def load_classifier(path: Path = WEIGHTS) -> PictureNet:
    """The committed judge of drawings, in eval mode."""
    return load_judge(path, LABELS)


def disturb(pictures: Tensor, generator: Generator) -> Tensor:
    """What a decoder may do to a good drawing: a slight bend and shift, softness, noise, a tint."""
    num = len(pictures)
    strength = torch.rand(num, generator=generator) * GENTLE
    pictures = warp(pictures, strength, generator, shift=1.0)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.rand((num, 1, 1, 1), generator=generator) * 0.6
    noise = torch.randn(pictures.shape, generator=generator)
    level = torch.rand((num, 1, 1, 1), generator=generator) * 0.1
    tint = torch.randn((num, 3, 1, 1), generator=generator) * 0.03
    return (pictures.lerp(soft, share) + noise * level + tint).clamp(-1, 1)


def train(
    *, num_drawings: int = 14000, num_foils: int = 7000, steps: int = 2600, seed: int = 0
) -> PictureNet:
    """Train a judge, about three minutes on one core. It sees both splits: it judges, it does not draw."""
    drawings = [
        make_drawing(index, seed, "withheld" if index % 12 == 0 else "train") for index in range(num_drawings)
    ]
    good, answers = to_pixels([render(drawing) for drawing in drawings]), labels_of(drawings)
    foils = to_pixels([make_foil(index, seed) for index in range(num_foils)])
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = PictureNet({name: len(values) for name, values in LABELS.items()}).train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
        none = LABELS["shape"].index(NONE)
        for _ in range(steps):
            rows = torch.randint(num_drawings, (64,), generator=generator)
            spoilt_rows = torch.randint(num_drawings, (12,), generator=generator)
            foil_rows = torch.randint(num_foils, (24,), generator=generator)
            strength = torch.empty(12).uniform_(*SPOILT, generator=generator)
            bad = torch.cat([warp(good[spoilt_rows], strength, generator), foils[foil_rows]])
            logits = net(disturb(torch.cat([good[rows], bad]), generator))
            shapes = torch.cat([answers["shape"][rows], torch.full((len(bad),), none)])
            loss = F.cross_entropy(logits["shape"], shapes, label_smoothing=0.02)
            for name in ("colour", "background"):
                loss = loss + 0.5 * F.cross_entropy(logits[name][: len(rows)], answers[name][rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def own_score(net: PictureNet, *, num: int = 2000, seed: int = 1) -> dict[str, float]:
    """Shares right on unseen drawings, plain and disturbed, and the share of unseen foils rejected."""
    drawings = [make_drawing(index, seed) for index in range(num)]
    pixels, answers = to_pixels([render(drawing) for drawing in drawings]), labels_of(drawings)
    generator = torch.Generator().manual_seed(seed)
    scores: dict[str, float] = {}
    for prefix, pictures in (("", pixels), ("disturbed_", disturb(pixels, generator))):
        found = judge(net, pictures)
        right = {name: torch.tensor(found[name]) == answers[name] for name in LABELS}
        scores |= {f"{prefix}{name}": float(mask.float().mean()) for name, mask in right.items()}
        everything = right["shape"] & right["colour"] & right["background"]
        scores[f"{prefix}all"] = float(everything.float().mean())
    none = LABELS["shape"].index(NONE)
    foils = judge(net, to_pixels([make_foil(index, seed) for index in range(num)]))["shape"]
    scores["foils_rejected"] = sum(label == none for label in foils) / num
    return scores


def main(argv: list[str] | None = None) -> int:
    """Train the judge if asked, and print its score on unseen pictures."""
    parser = argparse.ArgumentParser(prog="python -m tools.shape_classifier", description=__doc__)
    parser.add_argument("--train", action="store_true", help="train again and replace the weights")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file of the weights")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # one seed gives one set of weights
    if options.train:
        net = train()
        save_judge(net, options.out, how="python -m tools.shape_classifier --train", score=own_score(net))
    sys.stdout.write(json.dumps(own_score(load_classifier(options.out)), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
