"""Run jobs described in YAML or JSON files: python run.py config.yml [more.yml ...]"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from toolkit.errors import EXIT_FAILURE, EXIT_OK, EXIT_STOPPED, EXIT_USAGE, JobStopped, Problem, UserError

if TYPE_CHECKING:
    from toolkit.config_modules.loading import LoadedJob
    from toolkit.config_modules.process import DiffusionProcess

EXIT_INTERRUPTED = 130  # Ctrl-C before a job could write a checkpoint; what shells use for it

# Read by libraries when they are imported, so they are set before any of them is.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep instead of burning the cores of other processes
    "DISABLE_TELEMETRY": "YES",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_XET_HIGH_PERFORMANCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYDANTIC_DISABLE_PLUGINS": "1",  # there are none, and looking for them takes 30 ms
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
    parser.add_argument("--check", action="store_true", help="validate the files and run nothing")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of job files")
    arguments = parser.parse_args(argv)
    if not arguments.config_file_list and not arguments.schema:
        parser.error(
            "give at least one job file, for example: python run.py config/examples/train_lora_sd15.yml"
        )
    return arguments


class Tee:
    """A text stream that also writes to a log file, at once."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream = stream
        self._log = log

    def write(self, text: str) -> int:
        """Write to both; returns the number of characters."""
        self._log.write(text)
        self._log.flush()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def teed(file: str | None) -> Iterator[None]:
    """Copy stdout and stderr to a file, appending; its folders are made. Raises UserError."""
    if file is None:
        yield
        return
    try:
        path = Path(file).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("a", encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write the log {file}: {error.strerror}") from None
    streams = sys.stdout, sys.stderr
    with log:
        sys.stdout, sys.stderr = Tee(streams[0], log), Tee(streams[1], log)  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams


def load_all(names: Sequence[str], name_tag: str | None) -> list[LoadedJob]:
    """Every job file validated. Raises UserError with the problems of all of them."""
    from toolkit.config_modules.loading import load_job

    loaded, problems = [], []
    for name in names:
        try:
            loaded.append(load_job(name, name_tag))
        except UserError as error:
            problems += error.problems
    problems = problems or list(same_folders(loaded))
    if problems:
        raise UserError(problems)
    return loaded


def same_folders(jobs: Sequence[LoadedJob]) -> Iterator[Problem]:
    """A problem for each run of a job that an earlier job of the command line would write too."""
    from toolkit.config_modules.loading import run_folder

    owners: dict[Path, tuple[int, LoadedJob]] = {}
    for index, job in enumerate(jobs):
        for process in job.config.process:
            folder = run_folder(process, job.config.name)
            if folder is None:
                continue
            first, owner = owners.setdefault(folder, (index, job))
            if first != index:
                yield Problem(
                    "config.same_run",
                    f"writes the run folder of {owner.path}: {folder}",
                    file=str(job.path),
                    remedy="give it another name: config.name, or --name for [name]",
                )


def describe(job: LoadedJob) -> str:
    """One line on what a job would do."""
    parts = []
    for process in job.config.process:
        if process.type == "to_folder":
            parts.append(f"to_folder, {_count(len(process.generate.requests()), 'picture')}")
            continue
        kind: str = process.type
        if process.type != "vae":
            kind += f" ({_trained(process)})"
        data = (
            _count(len(process.slider.targets), "target")
            if process.type == "slider"
            else _count(len(process.datasets), "dataset")
        )
        parts.append(f"{kind}, {_count(process.train.steps, 'step')}, {data}")
    return f"{job.path}: {job.config.job} '{job.config.name}': {'; '.join(parts)}"


def _trained(process: DiffusionProcess) -> str:
    """What a diffusion training trains, in a few words."""
    from toolkit.config_modules.process import TrainProcess

    embedding = process.embedding if isinstance(process, TrainProcess) else None
    parts = [f"LoRA, rank {process.network.rank}"] if process.network else []
    parts += [f"embedding '{embedding.trigger}', {_count(embedding.tokens, 'vector')}"] if embedding else []
    return " and ".join(parts) or "full model"


def check(jobs: Sequence[LoadedJob]) -> int:
    """Say that every job is fine, and what may surprise."""
    for job in jobs:
        print(f"OK: {describe(job)}")
        for note in job.notes:
            print(f"  note: {note}")
    return EXIT_OK


def run_all(jobs: Sequence[LoadedJob], recover: bool) -> int:
    """Run jobs one after the other, always ending in a summary; the exit code."""
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
    print("\n#############################################")
    print(f"# Running job: {job.config.name}")
    print("#############################################\n", flush=True)
    for note in job.notes:
        print(f"note: {note}")
    try:
        from jobs.base_job import run_job

        run_job(job)
    except UserError as error:
        report(error)
        return error.exit_code
    except JobStopped as stop:
        print(f"Job stopped{f': {stop}' if str(stop) else ''}")
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception:  # noqa: BLE001 - a bug of ours: shown whole; the summary and --recover still hold
        import traceback

        traceback.print_exc()
        return EXIT_FAILURE
    return EXIT_OK


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
    try:
        with teed(arguments.log):
            return _main(arguments)
    except UserError as error:
        report(error)
        return EXIT_USAGE


def _main(arguments: argparse.Namespace) -> int:
    from toolkit.config_modules.lookup import load_env_files

    load_env_files()
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if arguments.schema:
        import json

        from toolkit.config_modules.loading import job_schema

        print(json.dumps(job_schema(), indent=2))
        return EXIT_OK
    try:
        jobs = load_all(arguments.config_file_list, arguments.name)
    except UserError as error:  # here and not in main, so that a log file gets the lines too
        report(error)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    jobs = [replace(job, rescan=arguments.rescan) for job in jobs]
    return check(jobs) if arguments.check else run_all(jobs, arguments.recover)


if __name__ == "__main__":
    sys.exit(main())
