"""The direction of dependencies, the torch-free modules and the length of files, as AGENTS.md states them.

Each rule is a function over a source tree; the tests run it over this repository and over planted violations.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 400

# What may be imported without importing torch; a name covers everything below it.
TORCH_FREE = [
    "toolkit.config_modules",
    "toolkit.data.buckets",
    "toolkit.data.captions",
    "toolkit.data.items",
    "toolkit.data.placing",
    "toolkit.data.scan",
    "toolkit.dataset_check",
    "toolkit.errors",
    "toolkit.evaluation.html_report",
    "toolkit.evaluation.near_duplicates",
    "toolkit.evaluation.report",
    "toolkit.models.catalogue",
    "toolkit.models.hub_cache",
    "toolkit.models.prompt_limits",
    "toolkit.networks.catalogue",
    "toolkit.packages",
    "toolkit.paths",
    "toolkit.preflight",
    "toolkit.presets",
    "toolkit.registry",
    "toolkit.runs",
    "toolkit.seeding",
    "toolkit.tee",
    "toolkit.text",
]
# Which of our own modules each part of the tree may import.
MAY_IMPORT = {
    "run.py": ["jobs", "toolkit"],
    "jobs": ["jobs", "toolkit"],
    "tools": ["tools", "toolkit"],
    "toolkit": ["toolkit"],
    "web": ["web", *TORCH_FREE],
}
# Configuration stops at jobs/build.py: constructors in the toolkit take plain arguments.
MAY_IMPORT_CONFIG = ["run.py", "jobs", "tools", "web", "toolkit/config_modules"]
NAMES = ["toolkit.config_modules.names"]  # tables of names, no settings: open to all
OURS = {"jobs", "run", "testing", "toolkit", "tools", "web"}
# toolkit/diffusion is mathematics: the standard library, torch, itself, and the torch-free tables and errors.
MATHEMATICS = ["toolkit.diffusion", "toolkit.errors", "toolkit.registry", "torch"]
HEAVY = ["accelerate", "diffusers", "matplotlib", "peft", "torch", "transformers"]


def covers(roots: Iterable[str], name: str) -> bool:
    """Whether a dotted name is one of the roots or lies below one."""
    return any(f"{name}.".startswith(f"{root}.") for root in roots)


def imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    """Every dotted name that a module's imports mention, inside functions too. package: the module's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def without_typing_blocks(tree: ast.Module) -> ast.Module:
    """The module as it runs: bodies of `if TYPE_CHECKING:` removed."""

    class Remover(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            is_guard = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return node.orelse if is_guard else self.generic_visit(node)

    return Remover().visit(tree)


def is_below(path: str, folders: Iterable[str]) -> bool:
    """Whether a path with forward slashes is one of the folders or files, or lies in one."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def import_violations(path: str, source: str) -> list[str]:
    """The imports of one file (path relative to the repository) that its place does not allow."""
    part = path.split("/")[0]
    package = ".".join(path.split("/")[:-1])
    tree = ast.parse(source)
    ours = [name for name in imported_names(tree, package) if name.split(".")[0] in OURS]
    found = [f"{path} imports {name}" for name in ours if not covers(MAY_IMPORT[part], name)]
    # A type is no dependency of what runs.
    at_run_time = list(imported_names(without_typing_blocks(tree), package))
    if not is_below(path, MAY_IMPORT_CONFIG):
        config = [n for n in at_run_time if covers(["toolkit.config_modules"], n) and not covers(NAMES, n)]
        found += [f"{path} imports {name}: configuration stops at jobs/build.py" for name in config]
    if is_below(path, ["toolkit/diffusion"]):
        found += [
            f"{path} imports {name}: the mathematics imports torch only"
            for name in at_run_time
            if name.split(".")[0] not in sys.stdlib_module_names and not covers(MATHEMATICS, name)
        ]
    return found


def sources(root: Path, parts: Iterable[str]) -> Iterator[Path]:
    """Every Python file of the named parts (files or folders) of a repository."""
    for part in parts:
        yield from [root / part] if (root / part).is_file() else sorted((root / part).rglob("*.py"))


def long_files(root: Path, parts: Iterable[str]) -> list[str]:
    """Files over the limit, each with its number of lines."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(root, parts)}
    return [
        f"{path.relative_to(root)}: {count} lines" for path, count in lengths.items() if count > MAX_LINES
    ]


def stray_packages(root: Path) -> list[str]:
    """`__init__.py` in config/, datasets/ or output/: a package `datasets` would shadow Hugging Face's."""
    folders = [root / name for name in ("config", "datasets", "output")]
    return [str(path.relative_to(root)) for folder in folders for path in folder.rglob("__init__.py")]


def heavy_imports(modules: list[str], folder: Path) -> dict[str, list[str]]:
    """Import the modules in turn in a fresh process: which of them first brought in which heavy libraries."""
    program = (
        "import importlib, json, sys\n"
        "modules, heavy, found = *json.loads(sys.argv[1]), {}\n"
        "seen = set()\n"
        "for module in modules:\n"
        "    importlib.import_module(module)\n"
        "    new = [name for name in heavy if name in sys.modules and name not in seen]\n"
        "    seen.update(new)\n"
        "    found.update({module: new} if new else {})\n"
        "print(json.dumps(found))\n"
    )
    command = [sys.executable, "-c", program, json.dumps([modules, HEAVY])]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def modules_below(name: str) -> list[str]:
    """The module itself and every module below it, as dotted names."""
    path = ROOT.joinpath(*name.split("."))
    if not path.is_dir():
        return [name]
    files = [file.relative_to(ROOT).with_suffix("") for file in sorted(path.rglob("*.py"))]
    return [".".join(file.parts).removesuffix(".__init__") for file in files]


FILES = [path.relative_to(ROOT).as_posix() for path in sources(ROOT, MAY_IMPORT)]


@pytest.mark.parametrize("path", FILES)
def test_imports_follow_the_layers(path):
    assert import_violations(path, (ROOT / path).read_text(encoding="utf-8")) == []


def test_the_tree_is_not_empty():
    assert {"run.py", "jobs/base_job.py", "toolkit/stable_diffusion_model.py", "web/app.py"} <= set(FILES)


def test_files_are_short():
    assert long_files(ROOT, [*MAY_IMPORT, "testing"]) == []


def test_folders_of_data_are_no_packages():
    assert stray_packages(ROOT) == []


def test_the_web_server_imports_nothing_heavy():
    modules = ["web.app", "web.__main__", *modules_below("web")]
    assert {"web.queue.supervisor", "web.launchers.shim", "web.routes.jobs"} <= set(modules)
    assert heavy_imports(modules, ROOT) == {}


def test_the_shim_is_light():
    """It stays in memory beside every job."""
    program = "import web.launchers.shim, sys; print(*sorted(name for name in sys.modules))"
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert (
        set(shown.split()) & {"fastapi", "sqlalchemy", "pydantic", "yaml", "numpy", "psutil", "asyncio"}
        == set()
    )


def test_torch_free_modules_import_nothing_heavy():
    modules = [module for name in TORCH_FREE for module in modules_below(name)]
    assert len(modules) > len(TORCH_FREE)
    checks = ["jobs.preflight", "jobs.preflight_disk", "jobs.preflight_process"]
    assert heavy_imports([*modules, *checks], ROOT) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--check", "--full", "config/examples/demo.yml"],
        ["--check", "--json", "config/examples/train_lora_sd15.yml"],
        ["--check", "no_such_file.yml"],
        ["--schema"],
        ["--list"],
        ["--status", "no_such_run"],
        ["--new", "datasets/glossy", "--model", "tiny-sd", "--out", "{out}/a.yml"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_the_command_line_answers_without_torch(arguments, tmp_path):
    program = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n"
        "    runpy.run_path('run.py', run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        f"sys.stderr.write('HEAVY ' + ' '.join(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    given = [argument.format(out=tmp_path) for argument in arguments]
    command = [sys.executable, "-c", program, "run.py", *given]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr.splitlines()[-1].split() == ["HEAVY"], result.stderr


@pytest.mark.parametrize(
    ("path", "source", "named"),
    [
        ("toolkit/training/trainer.py", "import jobs.train_job\n", "jobs.train_job"),
        (
            "toolkit/data/scan.py",
            "def scan():\n    from tools.score_tiny import main\n",
            "tools.score_tiny.main",
        ),
        ("toolkit/data/scan.py", "from testing import tiny_models\n", "testing.tiny_models"),
        ("toolkit/data/scan.py", "from ...jobs import build\n", "jobs.build"),
        ("tools/score_tiny.py", "from jobs.build import build_model\n", "jobs.build.build_model"),
        ("jobs/train_job.py", "import run\n", "run"),
        ("run.py", "from testing.tiny_models import build\n", "testing.tiny_models.build"),
        ("web/app.py", "from toolkit import stable_diffusion_model\n", "toolkit.stable_diffusion_model"),
        ("web/app.py", "from toolkit.training.trainer import Trainer\n", "toolkit.training.trainer.Trainer"),
        ("web/app.py", "import toolkit.runs_and_more\n", "toolkit.runs_and_more"),
        (
            "toolkit/training/ema.py",
            "from toolkit.config_modules import train\n",
            "toolkit.config_modules.train",
        ),
        ("toolkit/diffusion/objectives.py", "import numpy\n", "numpy"),
        (
            "toolkit/diffusion/objectives.py",
            "from diffusers import DDPMScheduler\n",
            "diffusers.DDPMScheduler",
        ),
        (
            "toolkit/diffusion/objectives.py",
            "from toolkit.data.items import Batch\n",
            "toolkit.data.items.Batch",
        ),
    ],
)
def test_a_planted_import_is_found(path, source, named):
    assert [named in line for line in import_violations(path, source)] == [True]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("run.py", "from jobs.base_job import run_job\nfrom toolkit.errors import UserError\n"),
        (
            "web/app.py",
            "import fastapi\nfrom toolkit.runs import status\nfrom toolkit.errors import Problem\n",
        ),
        ("toolkit/config_modules/job.py", "from toolkit.config_modules import train\n"),
        ("toolkit/models/shared/samplers.py", "from toolkit.config_modules.names import SAMPLERS\n"),
        (
            "toolkit/diffusion/criteria.py",
            "import math\nfrom torch import Tensor\nfrom toolkit.diffusion import x\n",
        ),
        (
            "toolkit/diffusion/criteria.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toolkit.data.items import Batch\n",
        ),
        ("toolkit/diffusion/sub/deep.py", "from ..criteria import mse\n"),
        (
            "toolkit/training/previews.py",
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from toolkit.config_modules.sample import Request\n",
        ),
    ],
)
def test_allowed_imports_pass(path, source):
    assert import_violations(path, source) == []


def test_a_planted_long_file_is_found(tmp_path):
    folder = tmp_path / "toolkit" / "data"
    folder.mkdir(parents=True)
    (folder / "short.py").write_text("x = 1\n" * MAX_LINES)
    (folder / "long.py").write_text("x = 1\n" * (MAX_LINES + 1))
    assert long_files(tmp_path, ["run.py", "toolkit"]) == ["toolkit/data/long.py: 401 lines"]


def test_a_planted_package_is_found(tmp_path):
    (tmp_path / "datasets" / "cats").mkdir(parents=True)
    (tmp_path / "datasets" / "cats" / "__init__.py").touch()
    assert stray_packages(tmp_path) == ["datasets/cats/__init__.py"]


def test_a_planted_heavy_import_is_found(tmp_path):
    (tmp_path / "torch.py").touch()
    (tmp_path / "light.py").write_text("import json\n")
    (tmp_path / "culprit.py").write_text("from helper import x\n")
    (tmp_path / "helper.py").write_text("import torch\nx = 1\n")
    assert heavy_imports(["light", "culprit", "helper"], tmp_path) == {"culprit": ["torch"]}
