"""Score how well a model draws what it is told: shape, colour and background of drawings.

    python -m tools.score_tiny [--model tiny-sd] [--lora FILE] [--prompts 200] [--seed 0] [--out FOLDER]

Draws fixed prompts with fixed seeds, and half as many of (shape, colour) pairs withheld from training, and
lets tools/shape_classifier.py judge. Writes score.json and sheet.png, where a red frame marks what was judged
wrong. With --assert the exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from toolkit.errors import UserError
from toolkit.seeding import keyed_seed
from tools.draw_shapes import SHAPES, WITHHELD, Drawing, make_drawing

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from toolkit.stable_diffusion_model import StableDiffusion

# Prompts come from drawings that no training set of ours holds.
PROMPT_SEED = 1_000_003
QUESTIONS = ("shape", "colour", "background")
GOALS = {"shape": 0.90, "colour": 0.95, "background": 0.95}
WITHHELD_GOALS = {"all_three": 0.75}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How pictures are drawn."""

    size: int = 32
    steps: int = 25
    guidance: float = 4.0
    batch_size: int = 25


@dataclass(frozen=True, slots=True)
class Judged:
    """One picture with what was asked for and what the classifier saw."""

    wanted: Drawing
    picture: Image.Image
    seen: dict[str, str]

    @property
    def right(self) -> dict[str, bool]:
        """Whether each question, and all of them together, have the right answer."""
        answers = {name: self.seen[name] == getattr(self.wanted, name) for name in QUESTIONS}
        return answers | {"all_three": all(answers.values())}


def choose_prompts(count: int, split: str) -> list[Drawing]:
    """Drawings whose captions are the prompts: each shape equally often, everything else at random."""
    per_shape = -(-count // len(SHAPES))  # rounded up, so that any count can be filled
    by_shape: dict[str, list[Drawing]] = defaultdict(list)
    index = 0
    while sum(map(len, by_shape.values())) < per_shape * len(SHAPES):
        drawing = make_drawing(index, PROMPT_SEED, split)
        index += 1
        if len(by_shape[drawing.shape]) < per_shape:
            by_shape[drawing.shape].append(drawing)
    # Shape by shape in turn: the first prompts of a list are a fair choice of all of it.
    return [by_shape[shape][turn] for turn in range(per_shape) for shape in SHAPES][:count]


def sample(
    pipeline: DiffusionPipeline, prompts: Sequence[str], *, seed: int, sampling: Sampling
) -> list[Image.Image]:
    """One picture for each prompt by DDIM; picture i has a seed of its own, the same in any batch."""
    import torch

    from toolkit.models.shared.samplers import make_scheduler

    pipeline.scheduler = make_scheduler("ddim", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), sampling.batch_size):
        part = list(prompts[start : start + sampling.batch_size])
        generators = [
            torch.Generator().manual_seed(keyed_seed("score", seed, start + i)) for i in range(len(part))
        ]
        pictures += pipeline(
            part,
            height=sampling.size,
            width=sampling.size,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            generator=generators,
        ).images
    return pictures


def judge_pictures(wanted: Sequence[Drawing], pictures: Sequence[Image.Image]) -> list[Judged]:
    """What the committed classifier sees in pictures of these drawings."""
    from tools.shape_classifier import LABELS, judge, load_classifier, to_pixels

    found = judge(load_classifier(), to_pixels(pictures))
    return [
        Judged(drawing, picture, {name: LABELS[name][found[name][i]] for name in LABELS})
        for i, (drawing, picture) in enumerate(zip(wanted, pictures, strict=True))
    ]


def shares(judged: Sequence[Judged]) -> dict[str, Any]:
    """Shares right for each question and for all three together, and the shape's for every shape."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for one in judged:
        groups[one.wanted.shape].append(one.right["shape"])
    found = {name: sum(one.right[name] for one in judged) / len(judged) for name in (*QUESTIONS, "all_three")}
    return {
        **{name: round(share, 4) for name, share in found.items()},
        "n": len(judged),
        "by_shape": {name: round(sum(right) / len(right), 4) for name, right in sorted(groups.items())},
    }


def missed(report: Mapping[str, Any]) -> list[str]:
    """The goals that a report misses, one line each."""
    pairs = [("seen pairs", report, GOALS), ("withheld pairs", report.get("withheld", {}), WITHHELD_GOALS)]
    return [
        f"{where}: {name.replace('_', ' ')} {found[name]:.1%}, at least {goal:.0%} wanted"
        for where, found, goals in pairs
        for name, goal in goals.items()
        if name in found and not found[name] >= goal
    ]


def table(report: Mapping[str, Any]) -> str:
    """The shares as lines to read."""
    rows: list[tuple[str, ...]] = [("", "seen", "goal", "withheld", "goal")]
    withheld = report.get("withheld", {})
    for name in (*QUESTIONS, "all_three"):
        cells = [report.get(name), GOALS.get(name), withheld.get(name), WITHHELD_GOALS.get(name)]
        rows.append((name.replace("_", " "), *("" if cell is None else f"{cell:.1%}" for cell in cells)))
    rows.append(("pictures", str(report.get("n", 0)), "", str(withheld.get("n", 0)), ""))
    return "\n".join(f"{row[0]:<12}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows)


def draw_sheet(judged: Sequence[Judged], columns: int = 10, side: int = 128) -> Image.Image:
    """All pictures in rows with what was asked for; wrong ones framed in red, with what was seen instead."""
    frame, gap, label = 4, 8, 30
    width, height = side + 2 * frame, side + 2 * frame + label
    rows = -(-len(judged) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    brush = ImageDraw.Draw(sheet)
    for index, one in enumerate(judged):
        x, y = gap + index % columns * (width + gap), gap + index // columns * (height + gap)
        wrong = [name for name in QUESTIONS if not one.right[name]]
        edge = width - 1
        brush.rectangle((x, y, x + edge, y + edge), fill="#d1242f" if wrong else "#d8dee4")
        big = one.picture.resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(big, (x + frame, y + frame))
        wanted = one.wanted
        mark = "*" if (wanted.shape, wanted.colour) in WITHHELD else ""
        brush.text(
            (x, y + width + 1), f"{wanted.size} {wanted.colour} {wanted.shape}{mark}", "#1f2328", font_size=11
        )
        place = "" if wanted.position == "centre" else f"{wanted.position}, "
        below = (
            "saw " + ", ".join(one.seen[name] for name in wrong)
            if wrong
            else place + f"on {wanted.background}"
        )
        brush.text((x, y + width + 14), below, "#d1242f" if wrong else "#6e7781", font_size=11)
    return sheet


def score(
    pipeline: DiffusionPipeline, *, num_prompts: int, seed: int, sampling: Sampling
) -> tuple[dict[str, Any], list[Judged]]:
    """Draw and judge prompts of known pairs, and half as many of withheld ones."""
    report: dict[str, Any] = {}
    everything: list[Judged] = []
    for split, count in (("train", num_prompts), ("withheld", num_prompts // 2)):
        wanted = choose_prompts(count, split)
        pictures = sample(pipeline, [drawing.caption for drawing in wanted], seed=seed, sampling=sampling)
        judged = judge_pictures(wanted, pictures)
        everything += judged
        if split == "train":
            report = shares(judged)
        elif judged:
            report["withheld"] = shares(judged)
    return report, everything


def model_hash(model: StableDiffusion) -> str:
    """sha256 over all weights and configs of a model without its LoRAs: the same for equal copies of it."""
    import hashlib

    from toolkit.models.shared.components import component_hash

    parts = [component_hash(part) for part in (model.unet, model.text_encoder, model.vae)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.score_tiny",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="tiny-sd", help="embedded name, folder or file")
    parser.add_argument("--lora", type=Path, help="LoRA file to put on it")
    parser.add_argument(
        "--prompts", type=int, default=200, help="prompts of seen pairs, half as many of withheld"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Sampling().steps, help="DDIM steps")
    parser.add_argument("--guidance", type=float, default=Sampling().guidance)
    parser.add_argument(
        "--out", type=Path, default=Path("output/score_tiny"), help="folder for score.json and sheet.png"
    )
    parser.add_argument(
        "--assert", dest="strict", action="store_true", help="exit with 1 if a goal is missed"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Score a model; prints the shares and leaves them, and the pictures, in the output folder."""
    options = build_parser().parse_args(argv)
    import torch

    from toolkit.model_utils import apply_lora, load_model_for_inference

    torch.set_num_threads(1)
    sampling = Sampling(steps=options.steps, guidance=options.guidance)
    try:
        model = load_model_for_inference(options.model)
        digest = model_hash(model)
        if options.lora is not None:
            apply_lora(model, options.lora)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    report, judged = score(
        model.pipeline(), num_prompts=options.prompts, seed=options.seed, sampling=sampling
    )
    report = {
        "schema_version": 1,
        **report,
        "settings": {
            "model": options.model,
            "lora": str(options.lora) if options.lora else None,
            "prompts": options.prompts,
            "seed": options.seed,
            **asdict(sampling),
        },
        "model_hash": digest,
        "missed": missed(report),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    draw_sheet(judged).save(options.out / "sheet.png")
    (options.out / "score.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(report))
    for line in report["missed"]:
        print(f"missed: {line}")
    print(f"{options.out / 'score.json'}\n{options.out / 'sheet.png'}")
    return 1 if options.strict and report["missed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
