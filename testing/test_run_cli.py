"""The command line of run.py: what it prints, which codes it exits with, what it leaves alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import run
from testing.config_helpers import GENERATE
from testing.job_helpers import make_dataset, training_config
from toolkit.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_USAGE,
    JobStopped,
    Problem,
    RunError,
    UserError,
)
from toolkit.tee import Tee

ROOT = Path(__file__).parents[1]


def command_line(*arguments: str | Path, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """run.py as a user runs it."""
    command = [sys.executable, str(ROOT / "run.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def jobs(tmp_path, monkeypatch) -> Callable[..., list[str]]:
    """Writes one job file for each outcome and makes run_job end in that outcome."""
    outcomes: dict[str, BaseException | None] = {}

    def run_job(loaded: Any) -> None:
        outcome = outcomes[loaded.config.name]
        if outcome is not None:
            raise outcome

    monkeypatch.setitem(sys.modules, "jobs.base_job", SimpleNamespace(run_job=run_job))
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def write(*endings: BaseException | None) -> list[str]:
        paths = []
        for index, ending in enumerate(endings):
            outcomes[f"job{index}"] = ending
            path = tmp_path / f"job{index}.yml"
            path.write_text(GENERATE.replace("name: pictures", f"name: job{index}"), encoding="utf-8")
            paths.append(str(path))
        return paths

    return write


MISTAKE = UserError([Problem("data", "picture a.png is broken"), Problem("data", "picture b.png is broken")])


@pytest.mark.parametrize(
    ("endings", "options", "code", "summary"),
    [
        ([None], [], EXIT_OK, [" - 1 completed job", " - 0 failures"]),
        ([None, None], [], EXIT_OK, [" - 2 completed jobs", " - 0 failures"]),
        ([MISTAKE], [], EXIT_USAGE, [" - 0 completed jobs", " - 1 failure"]),
        ([RunError("broke")], [], EXIT_FAILURE, [" - 0 completed jobs", " - 1 failure"]),
        ([ZeroDivisionError("a bug")], [], EXIT_FAILURE, [" - 0 completed jobs", " - 1 failure"]),
        ([RunError("broke"), None], [], EXIT_FAILURE,
         [" - 0 completed jobs", " - 1 failure", " - 1 job not started"]),
        ([RunError("broke"), None, MISTAKE], ["--recover"], EXIT_FAILURE,
         [" - 1 completed job", " - 2 failures"]),
        ([None, JobStopped("at step 5"), None], ["-r"], EXIT_STOPPED,
         [" - 1 completed job", " - 0 failures", " - 1 stopped job", " - 1 job not started"]),
        ([KeyboardInterrupt()], [], 130, [" - 0 completed jobs", " - 0 failures", " - 1 stopped job"]),
    ],
)  # fmt: skip
def test_every_run_ends_in_a_summary_and_its_code(jobs, capsys, endings, options, code, summary):
    paths = jobs(*endings)
    assert run.main([*paths, *options]) == code
    out = capsys.readouterr().out
    many = "job" if len(paths) == 1 else "jobs"
    assert out.startswith(f"Running {len(paths)} {many}\n")
    assert "# Running job: job0" in out
    assert out.split("\nResult:\n")[1].splitlines() == summary


def test_mistakes_are_lines_and_bugs_are_tracebacks(jobs, capsys):
    run.main(jobs(MISTAKE))
    assert capsys.readouterr().err == "error: picture a.png is broken\nerror: picture b.png is broken\n"
    run.main(jobs(ZeroDivisionError("a bug")))
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.endswith("ZeroDivisionError: a bug\n")


def test_nothing_starts_before_every_file_is_right(jobs, capsys, tmp_path):
    good = jobs(None)[0]
    bad = tmp_path / "bad.yml"
    bad.write_text(GENERATE.replace("prompts:", "promts:"), encoding="utf-8")
    assert run.main([good, str(bad), "none_of_this_name"]) == EXIT_USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert (
        f"error: {bad}:8: generate.promts: is not a known key (did you mean 'prompts'?)" in err.splitlines()
    )
    assert "'none_of_this_name' not found" in err


@pytest.mark.parametrize("log", ["all.log", "new/folder/all.log"])
def test_the_log_holds_everything_and_grows(jobs, capsys, monkeypatch, tmp_path, log):
    monkeypatch.chdir(tmp_path)
    paths = jobs(None, MISTAKE)
    run.main([paths[0], "--log", log])
    run.main([paths[1], "-l", log])
    captured = capsys.readouterr()
    text = Path(log).read_text(encoding="utf-8")
    assert "# Running job: job0" in text
    assert "picture a.png is broken" in text
    assert text.count("Result:") == 2
    assert sorted(text) == sorted(captured.out + captured.err)
    assert sys.stdout is not None
    assert not isinstance(sys.stdout, Tee)


def test_a_log_that_cannot_be_written(jobs, capsys, tmp_path):
    assert run.main([*jobs(None), "--log", str(tmp_path)]) == EXIT_USAGE
    assert "cannot write the log" in capsys.readouterr().err


def test_the_environment_is_set_before_a_job_and_the_users_wins(jobs, monkeypatch):
    monkeypatch.setitem(os.environ, "OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delitem(os.environ, "HF_XET_HIGH_PERFORMANCE", raising=False)
    run.main(jobs(None))
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert os.environ["HF_XET_HIGH_PERFORMANCE"] == "1"


def test_the_name_tag_comes_from_the_command_line(jobs, capsys, tmp_path):
    path = tmp_path / "tagged.yml"
    path.write_text(GENERATE.replace("name: pictures", 'name: "x_[name]"'), encoding="utf-8")
    assert run.main(["--check", "--name", "fox", str(path)]) == EXIT_OK
    assert "'x_fox'" in capsys.readouterr().out


def test_check_says_what_each_job_does(tmp_path):
    make_dataset(tmp_path / "pictures")
    (tmp_path / "train.yml").write_text(
        "job: train\nconfig:\n  name: my_lora\n  process:\n"
        "    - type: sd_trainer\n      training_folder: output\n"
        "      sqlite_db_path: /x.db\n      model: {name_or_path: tiny-sd}\n      network: {}\n"
        "      train: {steps: 7}\n      datasets: [{folder_path: pictures, resolution: 32}]\n",
        encoding="utf-8",
    )
    (tmp_path / "draw.yml").write_text(GENERATE, encoding="utf-8")
    result = command_line("--check", "train.yml", "draw.yml", folder=tmp_path)
    assert (result.returncode, result.stderr) == (EXIT_OK, "")
    lines = result.stdout.splitlines()
    first, second = (number for number, line in enumerate(lines) if not line.startswith(" ") and line)
    assert lines[first] == "OK: train.yml: train 'my_lora': sd_trainer (LoRA, rank 4), 7 steps, 1 dataset"
    assert [line.startswith("  note: sqlite_db_path: '/x.db' has no effect") for line in lines].count(
        True
    ) == 1
    assert "    32 x 32         3      3        3" in lines
    assert lines[second] == "OK: draw.yml: generate 'pictures': to_folder, 1 picture"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draw.yml", "pictures", "train.yml"]


def test_check_fails_without_a_traceback(tmp_path):
    (tmp_path / "bad.yml").write_text("job: generate\nconfig: {name: x\n", encoding="utf-8")
    result = command_line("--check", "bad.yml", folder=tmp_path)
    assert (result.returncode, result.stdout) == (EXIT_USAGE, "")
    assert result.stderr.startswith("error: bad.yml:3: is not valid YAML")
    assert "Traceback" not in result.stderr


def test_jobs_that_would_write_one_run_folder_are_refused(tmp_path):
    make_dataset(tmp_path / "pictures")
    (tmp_path / "link").symlink_to(tmp_path / "output")
    job = (
        "job: train\nconfig:\n  name: {name}\n  process:\n"
        "    - type: sd_trainer\n      training_folder: {root}\n"
        "      model: {{name_or_path: tiny-sd}}\n      datasets: [{{folder_path: pictures}}]\n"
    )
    for file, name, root in [
        ("a", "one", "output"),
        ("b", "one", "./output/"),
        ("c", "two", "output"),
        ("d", "one", "link"),
    ]:
        (tmp_path / f"{file}.yml").write_text(job.format(name=name, root=root), encoding="utf-8")
    result = command_line("a.yml", "b.yml", "c.yml", "d.yml", folder=tmp_path)
    assert (result.returncode, result.stdout) == (EXIT_USAGE, "")
    folder = tmp_path / "output" / "one"
    assert result.stderr.splitlines() == [
        f"error: {file}.yml: writes the run folder of a.yml: {folder} "
        "(give it another name: config.name, or --name for [name])"
        for file in ("b", "d")
    ]
    assert command_line("--check", "a.yml", "c.yml", folder=tmp_path).returncode == EXIT_OK
    again = command_line("--check", "a.yml", "a.yml", folder=tmp_path)
    assert again.returncode == EXIT_USAGE
    assert "a.yml: writes the run folder of a.yml" in again.stderr


def test_the_schema_is_json():
    result = command_line("--schema")
    assert result.returncode == EXIT_OK
    assert set(json.loads(result.stdout)["properties"]) == {"job", "config", "meta"}


def test_a_command_line_without_files_is_a_mistake():
    result = command_line()
    assert result.returncode == EXIT_USAGE
    assert "give at least one job file" in result.stderr


def test_help_names_the_exit_codes_and_imports_little():
    code = (
        "import sys, run\n"
        "try: run.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'pydantic', 'yaml', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for words in ("exit codes:", "--recover", "--name", "--log", "--rescan", "--check", "--schema"):
        assert words in result.stdout


@pytest.mark.parametrize("option", [["--check", "config/examples/generate.yml"], ["--schema"]])
def test_check_and_schema_import_no_torch(option):
    code = (
        "import sys, run\n"
        f"code = run.main({option!r})\n"
        "assert code == 0 and 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--full", "demo"], "--full goes with --check"),
        (["--list", "--recover"], "--recover goes with running jobs"),
        (["--check", "demo", "--recover"], "--recover goes with running jobs"),
        (["--list", "--name", "x"], "--name goes with running and checking jobs, and --new"),
        (["--status", "x", "--rescan"], "--rescan goes with running and checking jobs"),
        (["--schema", "--json"], "--json goes with --check"),
        (["--schema", "a.yml"], "--schema takes no job file"),
        (["--list", "--vram", "0"], "--vram goes with --new"),
        (["--json", "demo"], "--json goes with --check"),
        (["--vram", "8", "demo"], "--vram goes with --new"),
        (["--stop", "a", "--save", "b"], "--stop and --save exclude each other"),
        (["--check", "demo", "--status", "a"], "--check and --status exclude each other"),
        (["--status", "a", "demo"], "--status takes no job file, but here is demo"),
        (["--new", "pictures"], "--new needs --model"),
    ],
)
def test_options_that_would_be_ignored_are_mistakes(arguments, told, capsys):
    with pytest.raises(SystemExit) as end:
        run.parse_arguments(arguments)
    assert end.value.code == EXIT_USAGE and told in capsys.readouterr().err


def test_a_name_that_is_empty_is_a_name(capsys):
    assert run.main(["--status", ""]) == EXIT_USAGE
    assert capsys.readouterr().err.startswith("error: ")


def test_a_full_check_shows_how_far_it_is_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = str(training_config(tmp_path, Path("tiny-sd")))
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
        assert run.main(["--check", "--full", path]) == EXIT_OK
        shown = capsys.readouterr().err
        assert ("pictures:" in shown) == ("/6" in shown) == is_terminal


def test_a_reader_that_leaves_is_no_error():
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} run.py --schema | head -1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_sigterm_before_a_run_has_begun_ends_it_as_ctrl_c_does(tmp_path):
    from testing.job_helpers import start_job

    process = start_job(tmp_path, training_config(tmp_path, Path("tiny-sd"), "early"))
    said = iter(process.stdout.readline, "")
    assert any("# Running job: early" in line for line in said)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED, output
    assert output.count("Interrupted by SIGTERM\n") == 1 and "Traceback" not in output
    assert output.endswith("Result:\n - 0 completed jobs\n - 0 failures\n - 1 stopped job\n")
    assert not (tmp_path / "out" / "early" / "run.lock").exists()


def test_sigterm_while_jobs_are_checked_is_told_too(tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)

    def load_all(names: list[str], tag: str | None) -> list[Any]:
        if signal.getsignal(signal.SIGTERM) == before:
            pytest.fail("nobody answers SIGTERM")
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    monkeypatch.setattr(run, "load_all", load_all)
    assert run.main(["a.yml"]) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "Interrupted by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) == before


AFTER_ALL = """
import atexit, os, runpy, signal, sys

class LastModule:
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.{name}):
        kill(process, number)

sys.last_module = LastModule()  # torn down after Python has given its signals up
atexit.register(os.kill, os.getpid(), signal.{name})
sys.argv = ["run.py", "--schema"]
runpy.run_path("run.py", run_name="__main__")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_on_the_way_out_changes_nothing(name):
    code = AFTER_ALL.format(name=name)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    json.loads(done.stdout)
