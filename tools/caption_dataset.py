"""Let a model write the captions of pictures, beside them.

    python -m tools.caption_dataset --dataset-path photos --model Salesforce/blip-image-captioning-large

Pictures that have a caption keep it, unless --recaption is given. OUT_DIR/captions.jsonl lists what was
written and what stood there before; --undo takes it back. A run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

# As a file (`python tools/caption_dataset.py`) it finds its packages only from the repository's root.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toolkit.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    ConfigError,
    JobStopped,
    UserError,
)
from toolkit.packages import explain_missing_packages

if TYPE_CHECKING:
    from toolkit.captioning.request import CaptionRequest

EPILOG = f"""exit codes: {EXIT_OK} every picture has its caption; {EXIT_FAILURE} some could not be captioned;
{EXIT_USAGE} a mistake in the arguments, the pictures or the model: nothing was written;
{EXIT_INTERRUPTED} interrupted (Ctrl-C, SIGTERM): the same command goes on from there"""


def build_parser() -> argparse.ArgumentParser:
    """The command line. Its options are the keys of the config's section `caption`."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.caption_dataset",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(parser.add_argument_group("what is captioned").add_argument)
    _add_how(parser.add_argument_group("how it is put into words").add_argument)
    return parser


def _add_what(add: Callable[..., object]) -> None:
    add("--dataset-path", nargs="+", metavar="FOLDER", help="folders of pictures; captions go beside them")
    add("--caption-ext", default=".txt", help="extension of caption files: txt, caption or json")
    add("--recaption", action="store_true", help="also replace captions that exist")
    add("--max-samples", type=int, help="the most pictures to caption")
    add("--dry-run", action="store_true", help="show the captions and write none")
    add("--out-dir", type=Path, help="folder of captions.jsonl (default output/caption)")
    add(
        "--undo",
        type=Path,
        metavar="FILE",
        help="put back what the latest run in this captions.jsonl replaced",
    )


def _add_how(add: Callable[..., object]) -> None:
    add(
        "--model",
        help="image-to-text model of transformers (BLIP, Florence-2, Qwen-VL ...): folder or hub id",
    )
    add("--prompt", help="what the model is asked, or how the caption begins (default by the kind of model)")
    add("--prefix", default="", help="text in front of every caption, such as a trigger word")
    add("--suffix", default="", help="text behind every caption")
    add(
        "--strip-intro",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out openings that say nothing, such as 'The image shows' (default)",
    )
    add("--max-new-tokens", type=int, default=160, help="the longest caption in tokens")
    add("--num-beams", type=int, default=1, help="width of the search for words; 1 is greedy")
    add(
        "--resolution",
        type=int,
        default=1024,
        help="pictures with more pixels than this squared are scaled down",
    )
    add("--batch-size", type=int, default=1, help="pictures described at once")
    add("--device", help="cuda:0, mps or cpu (default the best there is)")
    add("--dtype", help="fp32, bf16 or fp16 (default bf16 on a GPU, fp32 on a CPU)")


def request_of(options: argparse.Namespace) -> CaptionRequest:
    """The captioning that the arguments ask for. Raises ConfigError with everything that is wrong."""
    from pydantic import ValidationError

    from toolkit.captioning.request import CaptionRequest
    from toolkit.config_modules.caption import CaptionConfig
    from toolkit.config_modules.explain import explain
    from toolkit.paths import OUTPUT_ROOT

    values = vars(options)
    try:
        section = CaptionConfig.model_validate({key: values[key] for key in CaptionConfig.model_fields})
    except ValidationError as error:
        told = explain(error, CaptionConfig, lambda _: ("", None))
        problems = [replace(each, key="--" + str(each.key).replace("_", "-")) for each in told]
        raise ConfigError(problems) from None
    return CaptionRequest(
        dataset_paths=section.dataset_path,
        out_dir=options.out_dir or OUTPUT_ROOT / "caption",
        device=options.device,
        dtype=options.dtype,
        **section.model_dump(exclude={"dataset_path"}),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Caption; the exit code."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.undo is None and not (options.dataset_path and options.model):
        parser.error("give --dataset-path and --model, or --undo")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return _undo(options.undo) if options.undo is not None else _run(request_of(options))
    except UserError as error:
        for problem in error.problems:
            sys.stderr.write(f"error: {problem}\n")
        return error.exit_code
    except JobStopped as stopped:
        sys.stderr.write(f"{stopped}\n")
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _undo(record: Path) -> int:
    from toolkit.captioning.record import undo

    restored, left = undo(record)
    for line in left:
        print(line)
    print(f"{restored} caption files are as they were before")
    return EXIT_FAILURE if left else EXIT_OK


def _run(request: CaptionRequest) -> int:
    from toolkit.captioning.planning import check_request

    wrong = list(check_request(request))
    if wrong:
        raise ConfigError(wrong)  # before torch is imported
    from tqdm import tqdm

    from toolkit.captioning.service import run_captioning
    from toolkit.progress_bars import Bars
    from toolkit.runs.commands import StopRequest
    from toolkit.runs.watcher import Watcher
    from toolkit.text import count

    with Bars("picture") as progress, StopRequest().install() as stop:
        watcher = Watcher(say=tqdm.write, progress=progress, should_stop=lambda: bool(stop))
        summary = run_captioning(request, watcher)
    print(f"{count(summary.num_captioned, 'picture')} captioned, {summary.num_kept} had a caption")
    if summary.num_captioned and not request.dry_run:
        print(f"listed in {request.record_path}; --undo {request.record_path} takes them back")
    return EXIT_OK


if __name__ == "__main__":
    explain_missing_packages()
    raise SystemExit(main())
