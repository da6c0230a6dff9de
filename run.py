"""Run jobs described in YAML or JSON files: python run.py config.yml [more.yml ...]"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from toolkit.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_USAGE,
    JobStopped,
    UserError,
)
from toolkit.packages import explain_missing_packages, missing_package, skip_plugin_search
from toolkit.tee import teed

if TYPE_CHECKING:
    from toolkit.config_modules.loading import LoadedJob

# Read by libraries when they are imported, so they are set before any of them is.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep instead of burning the cores of other processes
    "DISABLE_TELEMETRY": "YES",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_XET_HIGH_PERFORMANCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
STEERING = {
    "status": "how it stands: running, ended, or killed",
    "stop": "end it after the current step, with a checkpoint",
    "save": "save now, and go on",
    "sample": "draw previews now, and go on",
}
# Options that are not for everything: what they go with (None: running jobs), and how that is said.
GOES_WITH: dict[str, tuple[tuple[str | None, ...], str]] = {
    **dict.fromkeys(("full", "estimate", "probe"), (("check",), "--check, which runs nothing")),
    **dict.fromkeys(("model", "vram", "trigger", "out"), (("new",), "--new")),
    "json": (("check", "list", *STEERING), "--check, --status and --list"),
    "recover": ((None,), "running jobs"),
    "rescan": ((None, "check"), "running and checking jobs"),
    "name": ((None, "check", "new"), "running and checking jobs, and --new"),
}
EPILOG = """exit codes: 0 all jobs completed; 1 a job failed; 2 a mistake on the command line, in a config or
in the data; 3 a job was stopped early and left a checkpoint; 130 interrupted before that"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line as a namespace. Exits with code 2 on a mistake."""
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__, epilog=EPILOG)
    parser.add_argument(
        "config_file_list",
        nargs="*",
        metavar="CONFIG",
        help="job files: paths, or names in config/ or config/examples/, extension optional",
    )
    parser.add_argument(
        "-r", "--recover", action="store_true", help="go on with the next job after one failed"
    )
    parser.add_argument("-n", "--name", metavar="NAME", help="what [name] in the files stands for")
    parser.add_argument("-l", "--log", metavar="FILE", help="also append everything that is printed to FILE")
    parser.add_argument(
        "--rescan", action="store_true", help="verify every picture again, also those remembered as good"
    )
    check = parser.add_argument_group("checking")
    check.add_argument("--check", action="store_true", help="look for everything wrong and run nothing")
    check.add_argument("--full", action="store_true", help="with --check: decode every picture, once")
    check.add_argument("--estimate", action="store_true", help="with --check: predict memory and time")
    check.add_argument(
        "--probe", action="store_true", help="with --check: the same, corrected by a few real steps"
    )
    check.add_argument("--json", action="store_true", help="with --check, --status, --list: for programs")
    check.add_argument("--schema", action="store_true", help="print the JSON Schema of job files")
    begin = parser.add_argument_group("starting from pictures")
    begin.add_argument("--new", metavar="PHOTOS", help="write a job file for a folder of pictures")
    begin.add_argument("--model", help="with --new: sd15, sdxl, flux, tiny-sd ...")
    begin.add_argument(
        "--vram", type=float, metavar="GB", help="with --new: memory of the card (default: asked)"
    )
    begin.add_argument(
        "--trigger", metavar="WORD", help="with --new: the word that stands for what is learned"
    )
    begin.add_argument("--out", metavar="FILE", help="with --new: the file to write (default: NAME.yml)")
    steer = parser.add_argument_group("steering a run, by its name in output/ or its folder")
    steer.add_argument("--list", action="store_true", help="every run in output/ and how it stands")
    for name, effect in STEERING.items():
        steer.add_argument(f"--{name}", metavar="RUN", help=effect)
    arguments = parser.parse_args(argv)
    mistake = _misuse(arguments)
    if mistake:
        parser.error(mistake)
    return arguments


def _misuse(arguments: argparse.Namespace) -> str | None:
    """Why these options make no sense together, if they do not: none of them is ignored."""
    given = {
        name
        for name, value in vars(arguments).items()
        if value is not None and value is not False and value != []
    }
    alone = [name for name in ("check", "schema", "list", "new", *STEERING) if name in given]
    if len(alone) > 1:
        return f"{' and '.join(f'--{name}' for name in alone)} exclude each other"
    action = alone[0] if alone else None
    if action in (None, "check") and not arguments.config_file_list:
        return "give at least one job file, for example: python run.py config/examples/train_lora_sd15.yml"
    if action not in (None, "check") and arguments.config_file_list:
        return f"--{action} takes no job file, but here is {arguments.config_file_list[0]}"
    for name, (fit, told) in GOES_WITH.items():
        if name in given and action not in fit:
            return f"--{name} goes with {told}"
    if action == "new" and not arguments.model:
        return "--new needs --model, for example: python run.py --new my_pictures --model sd15"
    return None


def load_all(names: Sequence[str], name_tag: str | None) -> list[LoadedJob]:
    """Every job file validated and looked at. Raises UserError with the problems of all of them."""
    from toolkit.config_modules.loading import load_job

    loaded, problems = [], []
    for name in names:
        try:
            loaded.append(load_job(name, name_tag))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    from jobs.preflight import require_ready, same_folders

    problems = list(same_folders(loaded))
    if problems:
        raise UserError(problems)
    require_ready(loaded)
    return loaded


def check(arguments: argparse.Namespace) -> int:
    """Look at everything that can be wrong with the jobs and run nothing; the exit code."""
    from jobs.preflight import check_files
    from toolkit.preflight.report import as_json

    quiet = arguments.json or not sys.stderr.isatty()
    progress = None if quiet else progress_bars()
    full = arguments.full or arguments.probe  # the steps of a probe read pictures
    closer = None
    if arguments.estimate or arguments.probe:
        from jobs.look_closer import look_closer

        closer = partial(look_closer, probing=arguments.probe)
    reports = check_files(
        arguments.config_file_list,
        arguments.name,
        full=full,
        rescan=arguments.rescan,
        progress=progress,
        look_closer=closer,
    )
    problems = [problem for report in reports for problem in report.all_problems]
    if arguments.json:
        print_json(as_json(reports, full=full))
    else:
        print_lines(line for report in reports for line in report.lines())
        if problems:
            report(UserError(problems))
    return EXIT_USAGE if problems else EXIT_OK


def progress_bars() -> Callable[[str], Callable[[int, int], None]]:
    """Draws a bar on the terminal for each thing that is counted: (what) -> callback (done, total)."""
    from toolkit.progress_bars import Bars

    bars = Bars(" pictures", leave=False)
    return lambda what: partial(bars, what)


def steer(action: str, name: str | None, *, as_json: bool) -> int:
    """Say how runs stand, or put a command into the folder of one; the exit code."""
    from toolkit.runs.steering import answer

    told = answer(action, name)
    if as_json:
        print_json(told.data)
    else:
        print_lines(told.lines)
    return EXIT_OK


def new(arguments: argparse.Namespace) -> int:
    """Write a job file for a folder of pictures, and say what was chosen; the exit code."""
    from toolkit.presets.new_job import write_job

    print_lines(
        write_job(
            arguments.new,
            arguments.model,
            vram=arguments.vram,
            trigger=arguments.trigger,
            name=arguments.name,
            out=arguments.out,
        )
    )
    return EXIT_OK


def print_lines(lines: Iterable[str]) -> None:
    """Print lines as they come."""
    for line in lines:
        print(line)


def print_json(value: Any) -> None:
    """Print data for another program: strict JSON, in which a number that is none is null."""
    from toolkit.runs.atomic import to_json

    print(to_json(value, indent=2))


def run_all(jobs: Sequence[LoadedJob], recover: bool) -> int:
    """Run jobs one after the other, always ending in a summary; the exit code."""
    gc.enable()
    print(f"Running {_count(len(jobs), 'job')}")
    completed = failed = stopped = 0
    code = EXIT_OK
    for job in jobs:
        outcome = run_one(job)
        completed += outcome == EXIT_OK
        stopped += outcome in (EXIT_STOPPED, EXIT_INTERRUPTED)
        failed += outcome not in (EXIT_OK, EXIT_STOPPED, EXIT_INTERRUPTED)
        code = code or outcome
        if stopped or (failed and not recover):
            break
    not_started = len(jobs) - completed - failed - stopped
    print("\nResult:")
    print(f" - {_count(completed, 'completed job')}")
    print(f" - {_count(failed, 'failure')}")
    if stopped:
        print(f" - {_count(stopped, 'stopped job')}")
    if not_started:
        print(f" - {_count(not_started, 'job')} not started")
    return code


def run_one(job: LoadedJob) -> int:
    """Run one job; its exit code. Nothing a job raises gets past this, except SystemExit."""
    try:
        print("\n#############################################")
        print(f"# Running job: {job.config.name}")
        print("#############################################\n", flush=True)
        for note in job.notes:
            print(f"note: {note}")
        from jobs.base_job import run_job

        run_job(job)
    except UserError as error:
        report(error)
        return error.exit_code
    except JobStopped as stop:
        print(f"Job stopped{f': {stop}' if str(stop) else ''}")
        return EXIT_STOPPED
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt)
    except Exception as error:  # noqa: BLE001 - a bug of ours: shown whole; the summary and --recover still hold
        import traceback

        if (line := missing_package(error)) is not None:
            sys.stderr.write(f"error: {line}\n")
        else:
            traceback.print_exc()
        return EXIT_FAILURE
    return EXIT_OK


def interrupted(interrupt: KeyboardInterrupt) -> int:
    """Say that Ctrl-C, or a signal like it, ended what was going on; the exit code."""
    sys.stdout.flush()
    print(f"Interrupted{f' by {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
    return EXIT_INTERRUPTED


@contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM end the block as Ctrl-C does, wherever no run has a handler of its own yet.

    Does nothing outside the main thread, where Python allows no handlers.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt("SIGTERM")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def report(error: UserError) -> None:
    """Print the lines of a user's mistakes, without a traceback, and what was noted on the way out."""
    sys.stdout.flush()
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"note: {note}", file=sys.stderr)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks; the exit code (see toolkit/errors.py)."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    collects = gc.isenabled()
    gc.disable()  # nothing to collect before a job runs, and looking for it costs a tenth of the start
    try:
        with teed(arguments.log):
            code = _main(arguments)
            sys.stdout.flush()
            return code
    except UserError as error:
        report(error)
        return EXIT_USAGE
    except BrokenPipeError:  # who reads has gone, as `head` does: nothing to say, and nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    finally:
        if collects:
            gc.enable()


def _main(arguments: argparse.Namespace) -> int:
    skip_plugin_search()
    from toolkit.config_modules.lookup import load_env_files

    load_env_files()
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        return _obey(arguments)
    except UserError as error:  # here and not in main, so that a log file gets the lines too
        report(error)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt)


def _obey(arguments: argparse.Namespace) -> int:
    """The one thing that the command line asks for. Raises UserError."""
    if arguments.schema:
        from toolkit.config_modules.loading import job_schema

        print_json(job_schema())
        return EXIT_OK
    if arguments.new:
        return new(arguments)
    if arguments.list:
        return steer("list", None, as_json=arguments.json)
    for action in STEERING:
        if getattr(arguments, action) is not None:
            return steer(action, getattr(arguments, action), as_json=arguments.json)
    if arguments.check:
        return check(arguments)
    with terminable():
        jobs = load_all(arguments.config_file_list, arguments.name)
        return run_all([replace(job, rescan=arguments.rescan) for job in jobs], arguments.recover)


def leave(code: int) -> NoReturn:
    """End with `code`, whatever signal comes now: all is said and saved, Python's way out takes a while."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    explain_missing_packages()
    leave(main())
