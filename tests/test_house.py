"""Whether the house stands as designed: imports point one way, only workers import torch, and everything is said."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zephyrctl import plugins

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "zephyrctl"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    (
        "zephyrctl",
        "errors",
        "records",
        "progress",
        "concurrency",
        "verdicts",
        "disk",
        "teachers.call_log",
        "plugin_files",
    ),
    ("templates",),
    ("recipe", "contracts", "teachers.prices", "training.kinds", "training.losses", "rows.formats", "rows.turns"),
    ("launching.warm_workers",),
    ("hooks", "runs", "launching.processes", "token_contract", "tiny", "teachers.http_service", "teachers.http_client"),
    ("builtin",),
    ("plugins",),
    ("stages", "teachers", "rows"),
    ("data", "planning", "launching", "evaluation.questions", "evaluation.judged_rows"),
    ("feedback", "training", "evaluation", "publishing", "doctor", "chat"),
    ("testing",),
    ("cli", "workers"),
    ("__main__",),
)
"""From the ground up; a module imports from its own layer and from those before it."""

HEAVY = {"torch", "transformers", "trl", "datasets", "accelerate", "deepspeed", "lm_eval"}
LAZY = {
    "rows/hub_datasets.py": {"datasets"},
    "tiny/make_base.py": {"torch", "transformers"},
    "builtin/losses.py": {"torch"},
    "testing/losses.py": {"torch"},
}
"""The modules outside the workers that may import heavy libraries inside a function."""


def name_of(path: Path) -> str:
    """A module's name inside the package: `data.build`; the package itself is `zephyrctl`."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
    return name or "zephyrctl"


TREES = {name_of(path): ast.parse(path.read_text(), str(path)) for path in MODULES}


def layer(module: str) -> int:
    """The number of a module's layer, by the longest name that covers it."""
    found = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if f"{module}.".startswith(f"{name}.")
    ]
    assert found, f"{module} lies in no layer: give it one"
    return max(found)[1]


def is_for_types(node: ast.AST) -> bool:
    """True for `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def statements(node: ast.AST, into_functions: bool) -> Iterator[ast.AST]:
    """The nodes that run on import, and those of functions where asked; not what is for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if is_for_types(child):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not into_functions:
            continue
        yield child
        yield from statements(child, into_functions)


def imported(tree: ast.AST, into_functions: bool = True) -> set[str]:
    """The full names that a module imports."""
    names: set[str] = set()
    for node in statements(tree, into_functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are written in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    found = set()
    for name in imported(TREES[module]):
        if name.partition(".")[0] == "zephyrctl":
            inside = name.removeprefix("zephyrctl.")
            while inside and inside not in TREES:
                inside = inside.rpartition(".")[0]
            found.add(inside or "zephyrctl")
    return found


def test_there_are_modules_and_every_layer_has_some() -> None:
    assert len(MODULES) > 40
    assert {layer(module) for module in TREES} == set(range(len(LAYERS)))
    for names in LAYERS:
        for name in names:
            assert any(f"{module}.".startswith(f"{name}.") for module in TREES), f"there is no {name}"


@pytest.mark.parametrize("module", TREES)
def test_imports_point_one_way(module: str) -> None:
    upwards = [other for other in own_imports(module) if layer(other) > layer(module)]
    assert upwards == [], f"{module} imports from above"


def test_no_module_imports_itself_over_others() -> None:
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path, module))}"
        if module not in finished:
            for other in sorted(own_imports(module) - {module}):
                visit(other, (*path, module))
            finished.add(module)

    for module in TREES:
        visit(module, ())
    assert finished == set(TREES)


def test_nothing_imports_the_workers_or_the_commands() -> None:
    for module in TREES:
        for other in own_imports(module):
            for folder in ("workers", "cli"):
                if other.partition(".")[0] == folder:
                    assert module.partition(".")[0] == folder or module == "__main__", f"{module} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: name_of(path))
def test_only_workers_import_what_is_heavy(path: Path) -> None:
    if (PACKAGE / "workers") in path.parents:
        return
    tree = TREES[name_of(path)]
    at_once = {name.partition(".")[0] for name in imported(tree, into_functions=False)}
    assert not at_once & HEAVY
    lazily = {name.partition(".")[0] for name in imported(tree)}
    assert lazily & HEAVY <= LAZY.get(str(path.relative_to(PACKAGE)), set())


def environment() -> dict[str, str]:
    """The environment of a process that imports this checkout."""
    return {**os.environ, "PYTHONPATH": str(SOURCE)}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        pytest.param(["recipe", "show", "tiny"], marks=pytest.mark.slow),
        pytest.param(["run", "--recipe", "tiny", "--dry-run"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_command_that_trains_nothing_imports_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "zephyrctl", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "zephyrctl" in loaded
    assert loaded & (HEAVY | {"scipy", "pandas"}) == set()


def public(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """The public functions and classes of a module, and the public methods of those classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


@pytest.mark.parametrize("module", TREES)
def test_everything_public_says_what_the_caller_gets(module: str) -> None:
    assert ast.get_docstring(TREES[module]), f"{module} does not say which question it answers"
    silent = [node.name for node in public(TREES[module]) if not ast.get_docstring(node)]
    assert silent == []


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_module_says_what_it_asks(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_file_is_named_for_nothing() -> None:
    empty = {"util", "utils", "helper", "helpers", "manager", "managers", "common", "misc", "core", "base_classes"}
    named = [path for folder in ("src", "tests", "plugins") for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in named if path.stem in empty or path.parent.name in empty] == []


def kept_files() -> list[Path]:
    """Every file of the repository that git keeps or would keep."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    marks = [f"/{folder}/".encode() for folder in ("work", "root", "tmp/w")]
    files = kept_files()
    assert len(files) > 60
    found = {str(path.relative_to(ROOT)): mark for path in files for mark in marks if mark in path.read_bytes()}
    assert found == {}


def test_no_file_is_larger_than_the_tiny_base() -> None:
    large = [path.name for path in kept_files() if path.stat().st_size > 4_500_000]
    assert large == []


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff_has_nothing_to_say(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_mypy_has_nothing_to_say() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def defined_classes() -> dict[str, list[str]]:
    """The modules that define a class of each name; `Options` of plugins and private classes are left out."""
    modules: dict[str, list[str]] = {}
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name != "Options" and not node.name.startswith("_"):
                modules.setdefault(node.name, []).append(module)
    return modules


def test_no_class_name_is_used_in_two_modules() -> None:
    """One word has one meaning in the whole code base."""
    repeated = {name: modules for name, modules in defined_classes().items() if len(modules) > 1}
    assert repeated == {}


def test_no_conditional_expression_is_nested() -> None:
    nested = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.IfExp)
        for part in (node.test, node.body, node.orelse)
        if isinstance(part, ast.IfExp)
    }
    assert nested == set()


def texts(tree: ast.AST) -> Iterator[ast.Constant]:
    """The texts in a module that are values, and so not its docstrings."""
    documentation = {
        statement.value for statement in ast.walk(tree) if isinstance(statement, ast.Expr)
    }  # docstrings are expressions whose value nobody uses
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation:
            yield node


NAME_BENCHMARKS = ("evaluation.benchmarks", "builtin", "recipe.schema")


def test_only_a_benchmark_s_own_module_names_it() -> None:
    """Tables, reports, cards, help and completion ask the class, so that a new benchmark touches none of them."""
    names = set(plugins.load().names("benchmark"))
    assert {"mt-bench", "alpaca-eval", "open-llm"} <= names
    found = {
        module
        for module, tree in TREES.items()
        if not f"{module}.".startswith(tuple(f"{name}." for name in NAME_BENCHMARKS))
        and any(text.value in names for text in texts(tree))
    }
    assert found == set()


def test_only_the_table_of_kinds_compares_with_their_names() -> None:
    """A third kind of training must never become one of the first two in silence."""
    found = {
        module
        for module, tree in TREES.items()
        if module != "training.kinds"
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(isinstance(part, ast.Constant) and part.value in ("sft", "dpo") for part in ast.walk(node))
    }
    assert found == set()
