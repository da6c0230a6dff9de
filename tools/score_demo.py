"""Show and measure what the demo's LoRA learned: pictures without and with it, same seeds, same prompts.

    python -m tools.score_demo [--run output/demo] [--model tiny-sd] [--seeds 64]

Prompts with the trigger word are judged by tools/concept_classifier.py (is it the concept?), prompts without
it by tools/shape_classifier.py (is it still the drawing that was asked for?). Writes score.json and
before_after.png into the run's folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from toolkit.errors import Problem, RunError, UserError
from toolkit.runs.layout import RunFolder
from tools.draw_shapes import BACKGROUNDS, Drawing, article
from tools.score_tiny import Sampling, choose_prompts, judge_pictures, sample

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Pictures = list[Image.Image]
TRIGGER_PROMPT = "a zrb face on {} background"
JUDGE_AT_LEAST = 0.95  # a judge that is wrong more often measures nothing
SHEET_COLUMNS = 8
INK, FAINT, GOOD, BAD = "#1f2328", "#6e7781", "#1a7f37", "#d1242f"


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a model draws for the prompts with the trigger word and for the drawings' prompts."""

    concept: Pictures
    others: Pictures


def trigger_prompts(count: int) -> list[str]:
    """Prompts with the trigger word, every background in turn."""
    grounds = list(BACKGROUNDS)
    return [TRIGGER_PROMPT.format(article(grounds[i % len(grounds)])) for i in range(count)]


def draw(pipeline: DiffusionPipeline, wanted: Sequence[Drawing], *, seed: int, sampling: Sampling) -> Drawn:
    """As many pictures of the concept as there are drawings wanted, and those drawings; seeds by position."""
    return Drawn(
        sample(pipeline, trigger_prompts(len(wanted)), seed=seed, sampling=sampling),
        sample(pipeline, [drawing.caption for drawing in wanted], seed=seed + 1, sampling=sampling),
    )


def nearest(pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    """Mean distance of each picture to the nearest of the others: RMS over pixels and channels in [0, 1]."""
    import torch

    from tools.shape_classifier import to_pixels

    # [-1, 1] is twice as wide as [0, 1].
    ours, theirs = (to_pixels(part).flatten(1) / 2 for part in (pictures, others))
    distances = torch.cdist(ours, theirs) / ours.shape[1] ** 0.5
    return float(distances.min(dim=1).values.mean())


def training_pictures(folder: Path) -> Pictures:
    """The pictures of the concept that were trained on, RGB."""
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]


def measure(drawn: Drawn, wanted: Sequence[Drawing], training: Sequence[Image.Image]) -> dict[str, Any]:
    """What the judges see: `concept` and `others` are lists of verdicts by picture."""
    from tools.concept_classifier import is_face, load_classifier
    from tools.shape_classifier import to_pixels

    return {
        "concept": is_face(load_classifier(), to_pixels(drawn.concept)),
        "others": [one.right["all_three"] for one in judge_pictures(wanted, drawn.others)],
        "nearest": nearest(drawn.concept, training),
    }


def build_score(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """Shares in [0, 1] and distances, as .ci/assert_demo.py reads them."""

    def share(verdicts: Sequence[bool]) -> float:
        return round(sum(verdicts) / len(verdicts), 4)

    return {
        "before": share(before["concept"]),
        "after": share(after["concept"]),
        "kept_before": share(before["others"]),
        "kept_after": share(after["others"]),
        "nearest_before": round(before["nearest"], 4),
        "nearest_after": round(after["nearest"], 4),
    }


def table(score: Mapping[str, Any]) -> str:
    """The score as lines to read."""
    rows = [
        ("", "without", "with LoRA", "goal"),
        ("trigger prompts seen as the concept", "before", "after", "<= 20%, >= 80%"),
        ("other prompts drawn right", "kept_before", "kept_after", "within 10 points"),
        ("distance to the nearest training picture", "nearest_before", "nearest_after", "(information)"),
    ]

    def cell(name: str) -> str:
        if name not in score:
            return name
        return f"{score[name]:.3f}" if name.startswith("nearest") else f"{score[name]:.1%}"

    return "\n".join(f"  {row[0]:<42}{cell(row[1]):>9}{cell(row[2]):>11}   {row[3]}".rstrip() for row in rows)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the sheet: pictures with their verdicts (None: not judged) and what stands below them."""

    label: str
    pictures: Sequence[Image.Image]
    verdicts: Sequence[bool] | None = None
    below: Sequence[str] | None = None


def draw_sheet(title: str, groups: Sequence[tuple[str, Sequence[Row]]], side: int = 112) -> Image.Image:
    """Groups of rows under headings; a verdict is a green or red frame."""
    margin, gap, left, frame, text = 20, 8, 110, 3, 30
    cell = side + 2 * frame
    rows = [row for _, lines in groups for row in lines]
    height = 2 * margin + 30 + 32 * len(groups) + sum(cell + gap + (text if row.below else 0) for row in rows)
    sheet = Image.new("RGB", (2 * margin + left + SHEET_COLUMNS * (cell + gap) - gap, height), "white")
    brush = ImageDraw.Draw(sheet)
    brush.text((margin, margin), title, INK, font_size=18)
    y = margin + 30
    for heading, lines in groups:
        brush.text((margin, y + 10), heading, INK, font_size=14)
        y += 32
        for row in lines:
            brush.text((margin, y + cell // 2), row.label, INK, font_size=14, anchor="lm")
            for column, picture in enumerate(row.pictures[:SHEET_COLUMNS]):
                x = margin + left + column * (cell + gap)
                if row.verdicts is not None:
                    colour = GOOD if row.verdicts[column] else BAD
                    brush.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour)
                big = picture.resize((side, side), Image.Resampling.BICUBIC)
                sheet.paste(big, (x + frame, y + frame))
                if row.below:
                    brush.text(
                        (x + 1, y + cell + 1), wrapped(row.below[column]), FAINT, font_size=10, spacing=2
                    )
            y += cell + gap + (text if row.below else 0)
    return sheet


def wrapped(text: str, width: int = 23, lines: int = 2) -> str:
    """Text in at most so many lines of a cell's width."""
    import textwrap

    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))


def before_after(
    *, run: str, prompts: Sequence[str], drawn: Sequence[Drawn], found: Sequence[Mapping[str, Any]],
    wanted: Sequence[Drawing], training: Sequence[Image.Image],
) -> Image.Image:  # fmt: skip
    """The sheet: training pictures, trigger prompts and other prompts, each without and with the LoRA."""
    names = ("without", "with LoRA")

    def pairs(kind: str, texts: Sequence[str], num: int) -> list[Row]:
        rows = []
        for start in range(0, min(num * SHEET_COLUMNS, len(texts)), SHEET_COLUMNS):
            part = slice(start, start + SHEET_COLUMNS)
            for index, name in enumerate(names):
                below = texts[part] if index else None
                rows.append(Row(name, getattr(drawn[index], kind)[part], found[index][kind][part], below))
        return rows

    captions = [drawing.caption for drawing in wanted]
    step = max(1, len(training) // SHEET_COLUMNS)
    groups = [
        (f"Trained on {len(training)} pictures like these", [Row("", list(training)[::step])]),
        (
            "Prompts with the trigger word, same seeds (green: recognised as the concept)",
            pairs("concept", prompts, 2),
        ),
        (
            "Prompts without it should stay as they are (green: shape, colour and background right)",
            pairs("others", captions, 2),
        ),
    ]
    return draw_sheet(f"{run}: without and with the LoRA", groups)


def judge_is_good() -> dict[str, float]:
    """How often the concept's judge is right on what it has not seen. Raises RunError if too seldom."""
    from tools.concept_classifier import WEIGHTS, load_classifier, own_score

    found = own_score(load_classifier(), num=300)
    if not found["right"] >= JUDGE_AT_LEAST:
        problem = (
            f"is right on {found['right']:.1%} of held-out pictures, at least {JUDGE_AT_LEAST:.0%} needed"
        )
        remedy = "train it again: python -m tools.concept_classifier --train"
        raise RunError(Problem("demo.judge", problem, file=str(WEIGHTS), remedy=remedy))
    return found


def find_lora(run: RunFolder) -> Path:
    """The final LoRA of a run. Raises RunError if there is none."""
    path = run.path / f"{run.name}.safetensors"
    if not path.is_file():
        remedy = "train it first: python run.py config/examples/demo.yml"
        raise RunError(Problem("demo.no_lora", "holds no finished LoRA", file=str(run.path), remedy=remedy))
    return path


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Draw, judge, write score.json and before_after.png. Raises UserError."""
    from toolkit.model_utils import apply_lora, load_model_for_inference
    from tools.concept_classifier import FACES

    run = RunFolder(options.run.parent, options.run.name)
    lora = find_lora(run)
    judge = judge_is_good()
    sampling = Sampling(steps=options.steps, guidance=options.guidance, batch_size=16)
    wanted, training = choose_prompts(options.seeds, "train"), training_pictures(FACES)
    model = load_model_for_inference(options.model)
    drawn, found = [], []
    for with_lora in (False, True):
        if with_lora:
            apply_lora(model, lora)
        print(
            f"drawing {2 * len(wanted)} pictures {'with' if with_lora else 'without'} the LoRA ...",
            flush=True,
        )
        drawn.append(draw(model.pipeline(), wanted, seed=options.seed, sampling=sampling))
        found.append(measure(drawn[-1], wanted, training))
    score = {
        "schema_version": 1,
        **build_score(*found),
        "nearest_is": "mean distance to the nearest training picture, RMS over pixels in [0, 1]",
        "nearest_among_training": round(nearest_other(training), 4),
        "judge": judge,
        "settings": {
            "model": options.model,
            "seeds": options.seeds,
            "seed": options.seed,
            **asdict(sampling),
        },
    }
    sheet = before_after(
        run=run.name, prompts=trigger_prompts(len(wanted)), drawn=drawn, found=found, wanted=wanted,
        training=training,
    )  # fmt: skip
    sheet.save(run.path / "before_after.png")
    (run.path / "score.json").write_text(json.dumps(score, indent=2) + "\n", encoding="utf-8")
    return score


def nearest_other(pictures: Sequence[Image.Image]) -> float:
    """Mean distance of each picture to the nearest other one of the same set, as in `nearest`."""
    return sum(
        nearest([picture], [other for k, other in enumerate(pictures) if k != i])
        for i, picture in enumerate(pictures)
    ) / len(pictures)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.score_demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, default=Path("output/demo"), help="folder of the demo's run")
    parser.add_argument("--model", default="tiny-sd", help="the model it was trained on")
    parser.add_argument("--seeds", type=int, default=64, help="pictures of either kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture")
    parser.add_argument("--steps", type=int, default=Sampling().steps, help="DDIM steps")
    parser.add_argument("--guidance", type=float, default=Sampling().guidance)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure a finished demo and say where to look."""
    options = build_parser().parse_args(argv)
    import torch

    torch.set_num_threads(1)
    try:
        score = evaluate(options)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    print(f"\nWhat the LoRA learned, measured over {options.seeds} seeds:\n\n{table(score)}\n\nLook at")
    width = len(str(options.run / "contact_sheet.png")) + 3
    for name, what in (
        ("before_after.png", "the same seeds and prompts, without and with the LoRA"),
        ("contact_sheet.png", "previews while it trained"),
        ("loss.png", "the loss"),
        ("score.json", "these figures"),
    ):
        if (options.run / name).exists():
            print(f"  {options.run / name!s:<{width}}{what}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
