"""`zephyrctl plugins new`: write a working plugin package with a test, to start your own from."""

import keyword
import re
import shutil
import unicodedata
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from zephyrctl import __version__, hooks, templates
from zephyrctl import plugins as loading
from zephyrctl.cli.screen import Screen
from zephyrctl.errors import ZephyrError, did_you_mean

PREFIX = "zephyrctl-"


@dataclass(frozen=True)
class PackageKind:
    """What the templates need to know about a kind of plugin."""

    name: str
    template: str
    """The template of its code."""
    method: str
    """The method of `Plugins` that makes one, and its check in `zephyrctl.testing`, without `check_`."""
    contract: str
    use: str
    """A command that uses one; `{}` is its name."""


KINDS = {
    "teacher": PackageKind(
        "teacher", "teacher.py", "teacher", "Teacher", "zephyrctl data feedback --set feedback.rater.name={} --dry-run"
    ),
    "binarizer": PackageKind(
        "binarizer", "binarizer.py", "binarizer", "Binarizer", "zephyrctl data binarize --strategy {}"
    ),
    "base": PackageKind("model base", "base.py", "model_base", "ModelBase", "zephyrctl plan --set base.name={}"),
    "benchmark": PackageKind("benchmark", "benchmark.py", "benchmark", "Benchmark", "zephyrctl eval {} --dry-run"),
    "loss": PackageKind("loss", "loss.py", "loss", "PreferenceLoss", "zephyrctl dpo --set dpo.loss={} --dry-run"),
    "row-format": PackageKind(
        "row format", "row_format.py", "row_format", "RowFormat", "zephyrctl data build --input rows.jsonl --dry-run"
    ),
}
"""What is typed after `plugins new`: the kind of plugin."""
KIND_NAMES = f"{', '.join([*KINDS][:-1])} or {[*KINDS][-1]}"


def new(
    kind: Annotated[str, typer.Argument(help=f"Kind of plugin: {KIND_NAMES}.")],
    name: Annotated[str, typer.Argument(help="Name of the plugin in recipes, such as my-teacher.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written and write nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a working plugin package with a test into ./zephyrctl-NAME."""
    _check(kind, name)
    folder = Path(f"{PREFIX}{name}")
    files = package(KINDS[kind], name)
    result = {"kind": KINDS[kind].name, "name": name, "folder": str(folder), "files": sorted(files)}
    screen = Screen(json, quiet=False)
    if folder.exists():
        raise ZephyrError(f"{folder} already exists", "give another name, or move that folder")
    if dry_run:
        screen.show({"dry_run": [result]}, f"would write {folder}: {', '.join(sorted(files))}")
        return
    _write(folder, files)
    next_step = f"pip install --editable ./{folder} && pytest {folder}"
    screen.show(result | {"next": next_step}, f"{folder} is the {KINDS[kind].name} {name!r}; next: {next_step}")


def package(kind: PackageKind, name: str) -> dict[str, str]:
    """The text of each file of a package, by its path."""
    module = f"{PREFIX}{name}".replace("-", "_")
    code = f"plugin/{kind.template}.jinja"
    major, minor, *_ = __version__.split(".")
    values = {
        "kind": kind.name,
        "method": kind.method,
        "contract_class": kind.contract,
        "use": kind.use.format(name),
        "plugin": name,
        "module": module,
        "class_name": _class_name(name, templates.read(code)),
        "contract": hooks.CONTRACT,
        "version": f"{major}.{minor}",
        "next_version": f"{major}.{int(minor) + 1}",
    }
    templates_by_path = {
        "pyproject.toml": "plugin/pyproject.toml.jinja",
        "README.md": "plugin/README.md.jinja",
        f"src/{module}/__init__.py": code,
        f"tests/test_{module}.py": "plugin/test.py.jinja",
    }
    files = {path: templates.render(source, **values) for path, source in templates_by_path.items()}
    return files | {f"src/{module}/py.typed": ""}


def _check(kind: str, name: str) -> None:
    """Raise ZephyrError if the kind is unknown, or if the name is invalid or taken."""
    if kind not in KINDS:
        raise ZephyrError(
            f"there is no kind {kind!r} of plugin", did_you_mean(kind, KINDS, f"one of: {', '.join(KINDS)}")
        )
    if name.startswith(PREFIX):
        raise ZephyrError(
            f"{PREFIX!r} is added to the name anyway", f"zephyrctl plugins new {kind} {_valid_name(name)}"
        )
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(name):
        remedy = f"zephyrctl plugins new {kind} {_valid_name(name)}"
        raise ZephyrError(f"{name!r} is not a valid name: use small letters and digits, joined by dashes", remedy)
    taken = [offer.origin for offer in loading.load().offers if (offer.kind, offer.name) == (KINDS[kind].name, name)]
    module = f"{PREFIX}{name}".replace("-", "_")
    if taken or find_spec(module):
        origin = taken[0] if taken else f"the installed module {module}"
        raise ZephyrError(
            f"the name {name!r} is taken ({origin})", f"give another: zephyrctl plugins new {kind} my-{name}"
        )


def _class_name(name: str, template: str) -> str:
    """The name in CamelCase; with `Own` in front if the template already uses that word, such as for an import."""
    words = "".join(part.capitalize() for part in name.split("-"))
    return f"Own{words}" if re.search(rf"\b{words}\b", template) else words


def _valid_name(name: str) -> str:
    """The nearest valid name."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    plain = "-".join(re.findall(r"[a-z0-9]+", letters.removeprefix(PREFIX))).lstrip("0123456789-")
    return f"my-{plain}" if keyword.iskeyword(plain) else plain or "my-own"


def _write(folder: Path, files: dict[str, str]) -> None:
    """Write the whole package or nothing."""
    folder.mkdir()
    try:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
    except BaseException:
        shutil.rmtree(folder)
        raise
