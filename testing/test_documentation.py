"""What the documentation says exists, exists: paths, commands, options, examples, error codes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from tools import draw_shapes

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "AGENTS.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
EXAMPLES = sorted((ROOT / "config" / "examples").glob("*.yml"))
PATH = re.compile(r"(?<![\w/.])(?:config|datasets|docs|jobs|testing|toolkit|tools|web|\.ci)/[\w./-]*\w")


def text_of(page: str) -> str:
    """The text of a page named relative to the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def code_in(page: str) -> list[str]:
    """Every piece of code of a page: fenced blocks, indented blocks and `spans`, line by line."""
    text = text_of(page)
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (.*)$", text, re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", text)
    return [line for block in fenced for line in block.splitlines()] + indented + spans


def command_line(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run run.py, in the repository unless told otherwise."""
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every long option that run.py --help shows."""
    return set(re.findall(r"--[a-z][a-z-]*", command_line("--help").stdout))


@pytest.mark.parametrize("page", PAGES)
def test_named_paths_exist(page):
    named = {path for path in PATH.findall(text_of(page)) if "*" not in path}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text_of(page))
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_make_commands_are_targets(page):
    targets = set(re.findall(r"^([a-z0-9-]+):", text_of("Makefile"), re.MULTILINE))
    lines = [line for line in code_in(page) if re.match(r"(?:.*&& )?make\b", line)]
    named = {match for line in lines for match in re.findall(r"\bmake (?:[A-Z_]+=\S+ )*([a-z0-9-]+)", line)}
    assert named - targets == set()


def test_the_two_commands_are_what_ci_runs():
    stages = re.search(r"for stage in ([a-z0-9 -]+);", text_of(".ci/run"))
    assert {"demo", "test", "test-slow", "e2e", "check"} <= set(stages[1].split())
    assert "    make demo" in text_of("README.md").splitlines()


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_real_options_and_modules(page, options):
    for line in code_in(page):
        if "run.py" in line:
            assert set(re.findall(r"(?<=[ \[])--[a-z][a-z-]*", line)) - options == set(), line
        for module in re.findall(r"python -m ((?:tools|testing)\.[a-z_.]+)", line):
            assert ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file(), line


def test_every_option_is_in_the_readme(options):
    assert options - {"--help"} - set(re.findall(r"--[a-z][a-z-]*", text_of("README.md"))) == set()


def test_there_are_examples():
    assert {"demo.yml", "generate.yml", "tiny_vae.yml", "tiny_base.yml"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_pass_the_check_and_open_with_their_command(path, tmp_path):
    head = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    assert f"python run.py config/examples/{path.name}" in "\n".join(head)
    # The drawings are made by a command in the head of the file; two stand for them here.
    assert draw_shapes.main(["--out", str(tmp_path / "output" / "drawings"), "--count", "2"]) == 0
    # So are the models that one example makes for the next, of which the check reads configs only.
    model, made = ROOT / "toolkit" / "assets" / "tiny_sd", tmp_path / "output"
    (made / "tiny_init").symlink_to(model)
    (made / "tiny_vae").mkdir()
    (made / "tiny_vae" / "tiny_vae").symlink_to(model / "vae")
    result = command_line("--check", str(path), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_job_in_the_readme_passes_the_check(tmp_path):
    block = re.search(r"^```yaml\n(.*?)^```", text_of("README.md"), re.MULTILINE | re.DOTALL)[1]
    folder = next(path.parent for path in sorted((ROOT / "datasets").rglob("*.png")))
    assert "/path/to/my_pictures" in block
    path = tmp_path / "my_lora.yml"
    path.write_text(block.replace("/path/to/my_pictures", str(folder)), encoding="utf-8")
    result = command_line("--check", str(path))
    assert result.returncode == 0, result.stdout + result.stderr


def code_position(function: ast.FunctionDef) -> int | None:
    """Which of the arguments that a caller gives is the one named `code`, or None if there is none."""
    names = [argument.arg for argument in function.args.args if argument.arg != "self"]
    return names.index("code") if "code" in names else None


# Which argument is the code, of what other files call.
CODE_ARGUMENTS = {"Problem": 0, "ApiError": 1, "problem_response": 1, "refuse": 4}


def codes_in(source: str) -> Iterator[str]:
    """The codes that a file gives to Problem, or to a function of its own that passes a `code` on to it."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    positions = CODE_ARGUMENTS | {f.name: at for f in functions if (at := code_position(f)) is not None}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            at = positions.get(name, len(node.args))
            given = [word.value for word in node.keywords if word.arg == "code"] or node.args[at : at + 1]
            constants = (code.value for code in given if isinstance(code, ast.Constant))
            yield from (value for value in constants if isinstance(value, str))
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "default_code":
            yield node.value.value


def error_codes() -> set[str]:
    """Every code of an error in the sources."""
    paths = [path for folder in ("jobs", "toolkit", "tools", "web") for path in (ROOT / folder).rglob("*.py")]
    return {code for path in [ROOT / "run.py", *paths] for code in codes_in(path.read_text(encoding="utf-8"))}


def test_codes_are_found_however_they_are_given():
    source = (
        "class A(UserError):\n    default_code = 'a.default'\n"
        "def refuse(path, code): raise A(Problem(code, 'text'))\n"
        "class B:\n    def add(self, place, code): refuse(place, code)\n"
        "refuse('x', 'a.wrapped')\nrefuse('x', code='a.named')\nProblem('a.plain', 'text')\n"
        "b.add('x', 'a.method')\n"
    )
    assert set(codes_in(source)) == {"a.default", "a.wrapped", "a.named", "a.plain", "a.method"}


def test_every_error_code_is_documented_and_no_other():
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", text_of("docs/errors.md"), re.MULTILINE))
    assert documented == error_codes()
