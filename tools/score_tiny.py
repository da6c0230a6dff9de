"""Score how well a model draws what it is told: shape, colour and background of drawings.

    python -m tools.score_tiny --model tiny-sd [--lora F] [--prompts 200] [--seed 0] --out output/score

Draws fixed prompts with fixed seeds, half as many again for (shape, colour) pairs withheld from training, and
lets tools/shape_classifier.py judge. Writes score.json and sheet.png (what was judged wrong has a red frame).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from toolkit.errors import UserError
from toolkit.seeding import keyed_random, keyed_seed
from tools.draw_shapes import Drawing, make_drawing

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# Prompts come from drawings that no training set of ours holds.
PROMPT_SEED = 1_000_003
QUESTIONS = ("shape", "colour", "background")


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
        return answers | {"all": all(answers.values())}


def choose_prompts(count: int, split: str) -> list[Drawing]:
    """Drawings whose captions are the prompts: each shape equally often, everything else at random."""
    by_shape: dict[str, list[Drawing]] = defaultdict(list)
    index = 0
    while sum(map(len, by_shape.values())) < count:
        drawing = make_drawing(index, PROMPT_SEED, split)
        index += 1
        # Ten shapes; the rounding up lets a count that is no multiple of ten be filled.
        if len(by_shape[drawing.shape]) < -(-count // 10):
            by_shape[drawing.shape].append(drawing)
    chosen = [drawing for shape in sorted(by_shape) for drawing in by_shape[shape]]
    keyed_random("prompts", split).shuffle(chosen)
    return chosen


def sample(
    pipeline: DiffusionPipeline, prompts: Sequence[str], seed: int, sampling: Sampling
) -> list[Image.Image]:
    """One picture for each prompt; picture i has a seed of its own, the same in any batch."""
    import torch

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
    """Shares right for each question and all together, and the shape's for every shape."""
    result: dict[str, Any] = {"pictures": len(judged)}
    for name in (*QUESTIONS, "all"):
        result[name] = round(sum(one.right[name] for one in judged) / len(judged), 4)
    groups: dict[str, list[bool]] = defaultdict(list)
    for one in judged:
        groups[one.wanted.shape].append(one.right["shape"])
    result["by_shape"] = {name: round(sum(right) / len(right), 4) for name, right in sorted(groups.items())}
    return result


def draw_sheet(judged: Sequence[Judged], columns: int = 20, cell: int = 66) -> Image.Image:
    """All pictures in rows, wrong ones framed in red with what was seen instead."""
    label = 12
    rows = -(-len(judged) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * (cell + label)), "white")
    brush = ImageDraw.Draw(sheet)
    for index, one in enumerate(judged):
        x, y = index % columns * cell, index // columns * (cell + label)
        wrong = [name for name in QUESTIONS if not one.right[name]]
        brush.rectangle((x, y, x + cell - 1, y + cell - 1), fill="#d1242f" if wrong else "white")
        side = cell - 4
        sheet.paste(one.picture.resize((side, side), Image.Resampling.BICUBIC), (x + 2, y + 2))
        text = " ".join(one.seen[name] for name in wrong) if wrong else one.wanted.shape
        brush.text((x + 2, y + cell - 1), text[:12], fill="#d1242f" if wrong else "#57606a", font_size=10)
    return sheet


def score(
    pipeline: DiffusionPipeline, *, num_prompts: int, num_withheld: int, seed: int, sampling: Sampling
) -> tuple[dict[str, Any], list[Judged]]:
    """Draw and judge prompts of known pairs, and of withheld ones."""
    pipeline.set_progress_bar_config(disable=True)
    report: dict[str, Any] = {}
    everything: list[Judged] = []
    for name, split, count in (("seen", "train", num_prompts), ("withheld", "withheld", num_withheld)):
        if not count:
            continue
        wanted = choose_prompts(count, split)
        pictures = sample(pipeline, [drawing.caption for drawing in wanted], seed, sampling)
        judged = judge_pictures(wanted, pictures)
        report[name] = shares(judged)
        everything += judged
    return report, everything


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.score_tiny", description=__doc__)
    parser.add_argument("--model", default="tiny-sd", help="embedded name, folder or file")
    parser.add_argument("--lora", type=Path, help="LoRA file to put on it")
    parser.add_argument("--prompts", type=int, default=200, help="prompts of pairs seen in training")
    parser.add_argument("--withheld", type=int, help="prompts of withheld pairs (default: half of --prompts)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Sampling.steps, help="DDIM steps")
    parser.add_argument("--guidance", type=float, default=Sampling.guidance)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument(
        "--out", type=Path, default=Path("output/score"), help="folder for score.json, sheet.png"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Score a model; prints the shares and leaves them in the output folder."""
    options = build_parser().parse_args(argv)
    import torch

    from toolkit.model_utils import apply_lora, load_model_for_inference

    torch.set_num_threads(options.threads)
    sampling = Sampling(steps=options.steps, guidance=options.guidance)
    try:
        model = load_model_for_inference(options.model)
        if options.lora is not None:
            apply_lora(model, options.lora)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    withheld = options.prompts // 2 if options.withheld is None else options.withheld
    report, judged = score(
        model.pipeline(),
        num_prompts=options.prompts,
        num_withheld=withheld,
        seed=options.seed,
        sampling=sampling,
    )
    report = {
        "schema_version": 1,
        "model": options.model,
        "lora": str(options.lora) if options.lora else None,
        "seed": options.seed,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        **report,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    draw_sheet(judged).save(options.out / "sheet.png")
    (options.out / "score.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(report, indent=2) + f"\n{options.out / 'sheet.png'}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
