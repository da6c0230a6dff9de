"""Measure, image by image, whether each caption of a data set helps.

    python -m tools.eval_dataset --dataset-path datasets/drawings --model tiny-sd --out-dir output/eval

Every image is predicted under its own caption, under none and under those of other images, all on the same
noise. Writes OUT_DIR/JOB_NAME_000000000.json; a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# As a file (`python tools/eval_dataset.py`) it finds its packages only from the repository's root.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toolkit.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, JobStopped, UserError
from toolkit.packages import explain_missing_packages

if TYPE_CHECKING:
    from toolkit.evaluation.request import EvalRequest

EXIT_MODEL = 3  # as ai-toolkit's tool: the model cannot be loaded
EPILOG = f"""exit codes: {EXIT_OK} the report is written; {EXIT_FAILURE} it could not be finished;
{EXIT_USAGE} a mistake in the arguments or the data; {EXIT_MODEL} the model cannot be loaded or measured;
{EXIT_INTERRUPTED} interrupted (Ctrl-C, SIGTERM): the same command goes on from there"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.eval_dataset",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(parser.add_argument_group("what is measured").add_argument)
    _add_how(parser.add_argument_group("how it is measured").add_argument)
    _add_output(parser.add_argument_group("what is written").add_argument)
    return parser


def _add_what(add: Callable[..., object]) -> None:
    add(
        "--dataset-path",
        nargs="+",
        metavar="PATH",
        help="folder of pictures with captions, or a .json or .jsonl list of them; several may be given",
    )
    add("--caption-ext", default=".txt", help="extension of caption files")
    add("--default-caption", help="caption of images without one")
    add("--trigger-word", help="stands for [trigger] in captions; those without it are flagged")
    add("--sample-fraction", type=float, default=1.0, help="share of the images to measure, in (0, 1]")
    add("--max-samples", type=int, help="the most images to measure")
    add("--model", help="embedded model, folder, file or hub id")
    add(
        "--model-config-file",
        metavar="FILE",
        help="JSON with name_or_path, arch, vae_path, dtype instead of --model",
    )
    add("--arch", help="architecture of the model (default sd15)")
    add("--lora", help="LoRA file on the model")
    add("--lora-multiplier", type=float, default=1.0, help="its strength")
    add(
        "--apply-inference-lora",
        action="store_true",
        help="apply the inference_lora_path or lora_path of --model-config-file",
    )
    add("--against-base", action="store_true", help="also measure without the LoRA: what did training gain?")


def _add_how(add: Callable[..., object]) -> None:
    add(
        "--samples-per-image",
        type=int,
        default=16,
        help="draws of noise for each image (default 16); fewer flag little",
    )
    add(
        "--fixed-noise-std",
        type=float,
        help="measure at the one noise level with this standard deviation, in (0, 1]",
    )
    add(
        "--timestep-type",
        default="uniform",
        help="density of noise levels: uniform, sigmoid, cubic_early ...",
    )
    add(
        "--t-range",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="noise levels measured",
    )
    add(
        "--caption-ablation",
        default="none",
        choices=["none", "zero", "blank", "shuffle", "random"],
        help="what stands in for the caption in ablation_delta (none: the empty caption)",
    )
    add(
        "--caption-ablation-compare",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure without the caption",
    )
    add("--others", type=int, default=7, help="captions of other images to compare with; 0 for none")
    add(
        "--edits",
        action="store_true",
        help="also leave out and exchange each part of a caption: which word is wrong?",
    )
    add("--suggest", action="store_true", help="the same, and look for the word that fits better")
    add(
        "--target-se",
        type=float,
        help="stop an image when its mean log ratio is known to this standard error",
    )
    add(
        "--target-q",
        type=float,
        help="stop an image when it is found at this false discovery rate, or found to help",
    )
    add("--fdr", type=float, default=0.1, help="false discovery rate of the flags")
    add(
        "--eval-resolution",
        type=int,
        help="side in pixels whose area the images get (default 256, or the model's)",
    )
    add("--batch-size", type=int, default=1, help="images in one forward pass, each with all its captions")
    add("--device", default="auto", help="cuda:0, mps, cpu or auto")
    add("--dtype", help="precision of the model: fp32, bf16, fp16 (default fp32 on a CPU, else bf16)")
    add("--seed", type=int, default=0, help="of all draws: equal seeds give equal numbers for an image")


def _add_output(add: Callable[..., object]) -> None:
    add("--out-dir", type=Path, help="folder of the report (default output/eval/JOB_NAME)")
    add("--job-name", default="dataset_eval", help="name of the report")
    add("--step", type=int, default=0, help="number in the report's name, of the checkpoint it is about")
    add("--html", action="store_true", help="also write the report as one page to look at")
    add(
        "--normalize-loss",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also tell each loss relative to the mean of its data set, as loss_relative",
    )
    add("--log-conditioning", action="store_true", help="write .eval_caption_cond_*.log into OUT_DIR")
    add("--debug-captions", action="store_true", help="write .eval_caption_debug_*.log into OUT_DIR")
    add("--debug-noise", action="store_true", help="print the noise levels of every image")
    add("--schema", action="store_true", help="print the JSON Schema of reports and end")


def request_of(options: argparse.Namespace) -> EvalRequest:
    """The evaluation that the arguments ask for. Raises ConfigError with everything that is wrong."""
    from toolkit.evaluation.arguments import make_request

    return make_request({key: value for key, value in vars(options).items() if key != "schema"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run an evaluation; the exit code."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.schema:
        from toolkit.evaluation.report import report_schema

        print(json.dumps(report_schema(), indent=2))
        return EXIT_OK
    if not options.dataset_path or not (options.model or options.model_config_file):
        parser.error("give --dataset-path and --model")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return _run(options)
    except UserError as error:
        from toolkit.errors import ModelError

        for problem in error.problems:
            sys.stderr.write(f"error: {problem}\n")
        return EXIT_MODEL if isinstance(error, ModelError) else error.exit_code
    except JobStopped as stopped:
        sys.stderr.write(f"{stopped}\n")
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from toolkit.runs.commands import StopRequest

    request = request_of(options)
    from toolkit.evaluation.service import run_evaluation
    from toolkit.evaluation.summary import summary_lines
    from toolkit.progress_bars import Bars
    from toolkit.runs.watcher import Watcher

    with Bars("image") as progress, StopRequest().install() as stop:
        report = run_evaluation(
            request,
            Watcher(say=lambda text: tqdm.write(text), progress=progress, should_stop=lambda: bool(stop)),
        )
    for line in summary_lines(report):
        print(line)
    print(f"report {request.report_path}")
    if request.html:
        print(f"page {request.page_path}")
    return EXIT_OK


if __name__ == "__main__":
    explain_missing_packages()
    raise SystemExit(main())
