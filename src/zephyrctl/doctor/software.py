"""Compare Python and the installed libraries with the allowed ranges and the tested versions."""

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NotRequired, TypedDict

import yaml
from packaging.specifiers import SpecifierSet

from zephyrctl import templates
from zephyrctl.doctor.finding import Finding, note, ok, problem

TABLE = "tested.yaml"
GPU_ONLY = ("deepspeed",)
"""Required packages that are only used to train on several processes or GPUs."""
EXTRAS = {
    "bitsandbytes": "QLoRA and 8-bit optimizers",
    "vllm": "faster generation on a GPU",
    "lm-eval": "zephyrctl eval open-llm",
}
"""Optional packages that are worth a line if missing, and what each is for."""


class PackageVersions(TypedDict):
    """The versions of one package: the range that pip may install, and the one in constraints.txt."""

    range: str
    tested: str | None
    extra: NotRequired[str]
    """The extra of zephyrctl that installs an optional package."""


class VersionTable(TypedDict):
    """What `templates/tested.yaml` contains."""

    python: str
    required: dict[str, PackageVersions]
    extras: dict[str, PackageVersions]


@cache
def table() -> VersionTable:
    """Range and tested version of each package, from the metadata and constraints.txt."""
    versions: VersionTable = yaml.safe_load(templates.read(TABLE))
    return versions


def installed(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def software(has_gpu: bool) -> Iterator[Finding]:
    """Findings about Python, the required libraries, the extras and the compilers."""
    yield python(platform.python_version())
    versions = {package: installed(package) for package in table()["required"]}
    yield from libraries(versions, has_gpu)
    for package, purpose in EXTRAS.items():
        yield extra(package, purpose, installed(package))
    yield compilers()


def python(version: str) -> Finding:
    """The version of this interpreter."""
    wanted = table()["python"]
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return problem("python", f"{version}, but zephyrctl needs {wanted}", "create an environment with such a Python")
    return ok("python", f"{version}, {sys.executable}")


def libraries(versions: Mapping[str, str | None], has_gpu: bool) -> Iterator[Finding]:
    """A finding for each library that is missing or out of range, and one for all that differ from the tested ones."""
    untested = []
    for package, version in versions.items():
        entry = table()["required"][package]
        finding = version_of(package, version, entry["range"])
        if finding and package in GPU_ONLY and not has_gpu:
            yield note(package, finding.what, finding.remedy)
        elif finding:
            yield finding
        elif entry["tested"] and _public(version) != entry["tested"]:
            untested.append(f"{package} {version} (tested {entry['tested']})")
    if untested:
        yield note(
            "libraries", f"in range but not tested: {', '.join(untested)}", "pip install -c constraints.txt zephyrctl"
        )
    else:
        yield ok("libraries", f"{len(versions)} required libraries checked")


def version_of(package: str, version: str | None, wanted: str) -> Finding | None:
    """The problem with a version; None if it is in range."""
    remedy = f"pip install '{package}{wanted}'"
    if version is None:
        return problem(package, "not installed", remedy)
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return problem(package, f"{version}, but zephyrctl needs {wanted}", remedy)
    return None


def extra(package: str, purpose: str, version: str | None) -> Finding:
    """A finding about an optional package."""
    entry = table()["extras"][package]
    if version is None:
        return note(package, f"not installed; needed for {purpose}", f"pip install 'zephyrctl[{entry['extra']}]'")
    finding = version_of(package, version, entry["range"])
    return note(package, finding.what, finding.remedy) if finding else ok(package, version)


def compilers() -> Finding:
    """The compilers that DeepSpeed needs when it is first used; that takes 85 s on two cores, once."""
    missing = [name for name in ("g++", "ninja") if not shutil.which(name)]
    if missing:
        names = " and ".join(missing)
        return note("compilers", f"no {names}; DeepSpeed needs both to compile its extensions", f"install {names}")
    return ok("compilers", "g++ and ninja are installed (DeepSpeed needs them)")


def _public(version: str | None) -> str:
    """The version without its build tag: 2.13.0 for 2.13.0+cu128."""
    return (version or "").partition("+")[0]
