"""Look at data sets before they are trained on: files, sizes, copies, captions, and what the model will see.

    python -m tools.check_dataset datasets/drawings --resolution 512 --html output/check.html

Nothing is written into the data set, and no model is loaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# As a file (`python tools/check_dataset.py`) it finds its packages only from the repository's root.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toolkit.data.captions import is_extension
from toolkit.errors import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, UserError
from toolkit.packages import explain_missing_packages
from toolkit.text import unwritable

if TYPE_CHECKING:
    from toolkit.dataset_check.report import CheckReport, DatasetCheck

EPILOG = f"""exit codes: {EXIT_OK} a training would take it; {EXIT_FAILURE} it would not (with --strict:
or there is something to look at); {EXIT_USAGE} a mistake in the arguments"""
MAX_RESOLUTION, MAX_MULTIPLE = 16384, 512  # pixels
SHOWN = 5  # files of each kind of finding on the terminal


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.check_dataset",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="folder of pictures, or a .json or .jsonl list of them",
    )
    add(
        "--resolution",
        nargs="+",
        type=int,
        default=[512],
        help="side in pixels whose area a bucket has; several",
    )
    add(
        "--size-multiple",
        type=int,
        default=8,
        help="sides of buckets are multiples of this (the model's own)",
    )
    add("--caption-ext", default=".txt", help="extension of caption files")
    add("--default-caption", help="caption of pictures without one")
    add("--trigger-word", help="placed in captions as in a training; captions without it are told")
    add(
        "--mask-path",
        type=Path,
        metavar="FOLDER",
        help="masks of the same names: white counts, black does not",
    )
    add("--alpha-mask", action="store_true", help="the pictures' transparency is their mask")
    add("--invert-mask", action="store_true", help="black, or transparent, counts instead")
    add("--strict", action="store_true", help="let the exit code be 1 for anything there is to look at")
    add("--html", type=Path, metavar="FILE", help="write a page with buckets and thumbnails")
    add("--json", type=Path, metavar="FILE", help="write everything as JSON; - prints it and nothing else")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check data sets; the exit code."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if min(*options.resolution, options.size_multiple, 10**6) < 1:
        parser.error("--resolution and --size-multiple must be at least 1")
    if options.size_multiple > MAX_MULTIPLE or max(options.resolution) > MAX_RESOLUTION:
        limits = f"--resolution at most {MAX_RESOLUTION}, --size-multiple at most {MAX_MULTIPLE}"
        parser.error(f"{limits}: no model takes more")
    for name in unwritable(vars(options)):
        parser.error(f"--{name.replace('_', '-')} cannot be written as UTF-8")
    if not is_extension(options.caption_ext):
        parser.error(f"--caption-ext {options.caption_ext!r} must be the end of a file's name, such as .txt")
    try:
        return _run(options)
    except UserError as error:
        for problem in error.problems:
            sys.stderr.write(f"error: {problem}\n")
        return error.exit_code


def _run(options: argparse.Namespace) -> int:
    from toolkit.data.companions import CompanionSettings
    from toolkit.dataset_check.check import Rules, check_dataset
    from toolkit.dataset_check.html import write_html
    from toolkit.dataset_check.report import CheckReport
    from toolkit.paths import resolve_path
    from toolkit.progress_bars import Bars
    from toolkit.runs import atomic

    rules = Rules(
        resolutions=tuple(options.resolution),
        size_multiple=options.size_multiple,
        caption_ext=options.caption_ext,
        default_caption=options.default_caption,
        trigger_word=options.trigger_word,
        companions=CompanionSettings(
            mask_folder=None if options.mask_path is None else resolve_path(options.mask_path),
            alpha_mask=options.alpha_mask,
            invert_mask=options.invert_mask,
        ),
    )
    with Bars("picture", leave=False) as progress:
        checks = [check_dataset(resolve_path(path), rules, progress) for path in options.paths]
    report = CheckReport(datasets=checks)
    to_stdout = str(options.json) == "-"
    if to_stdout:
        print(report.model_dump_json(indent=1))
    else:
        for check in report.datasets:
            _tell(check)
    if options.json and not to_stdout:
        atomic.write_text(options.json, json.dumps(report.model_dump(mode="json"), indent=1) + "\n")
        print(f"report {options.json}")
    if options.html:
        write_html(report, options.html)
        if not to_stdout:
            print(f"page {options.html}")
    return _exit_code(report, strict=options.strict)


def _exit_code(report: CheckReport, *, strict: bool) -> int:
    bad = any(check.problems or (strict and check.counts) for check in report.datasets)
    return EXIT_FAILURE if bad else EXIT_OK


def _tell(check: DatasetCheck) -> None:
    """A data set's findings in a few lines each."""
    from toolkit.dataset_check.report import FINDINGS
    from toolkit.text import count

    print(f"{check.path}: {count(check.num_pictures, 'picture')}")
    for problem in check.problems:
        print(f"  error: {problem}")
    files = [(picture.path, finding) for picture in check.pictures for finding in picture.findings]
    files += list(check.other_files.items())
    for code, number in check.counts.items():
        print(f"  {number} {FINDINGS.get(code, code)}")
        for name, finding in [each for each in files if each[1].code == code][:SHOWN]:
            print(f"    {name}: {finding.message}")
        if number > SHOWN:
            print(f"    and {number - SHOWN} more")
    if check.buckets:
        buckets = ", ".join(f"{row.width}x{row.height}: {row.pictures}" for row in check.buckets)
        print(f"  buckets {buckets}")
    if check.tags:
        kind = "words" if check.tags_are_words else "tags"
        print(f"  {kind} {', '.join(f'{row.tag} {row.pictures}' for row in check.tags[:12])}")
    for note in check.notes:
        print(f"  note: {note}")


if __name__ == "__main__":
    explain_missing_packages()
    raise SystemExit(main())
