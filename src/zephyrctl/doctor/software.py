"""Python and the libraries that are installed, beside the ranges that are stated and the versions that were tested."""

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from packaging.specifiers import SpecifierSet

from zephyrctl import templates
from zephyrctl.doctor.finding import Finding, note, ok, problem

TABLE = "tested.yaml"
GPU_ONLY = ("deepspeed",)
"""What is required and only used where several processes or GPUs train."""
EXTRAS = {
    "bitsandbytes": "QLoRA and 8-bit optimizers",
    "vllm": "faster answers on a GPU",
    "lm-eval": "zephyrctl eval open-llm",
}
"""Optional packages whose absence is worth a line, and what each is for."""


@cache
def table() -> dict[str, Any]:
    """Range and tested version by package, as the package's metadata and constraints.txt state them."""
    read: dict[str, Any] = yaml.safe_load(templates.read(TABLE))
    return read


def installed(package: str) -> str | None:
    """The version of a package that is here; None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def software(has_gpu: bool) -> Iterator[Finding]:
    """Python, the libraries that are required, and the extras."""
    yield python(platform.python_version())
    versions = {package: installed(package) for package in table()["required"]}
    yield from libraries(versions, has_gpu)
    for package, purpose in EXTRAS.items():
        yield extra(package, purpose, installed(package))
    yield compilers()


def python(version: str) -> Finding:
    """This interpreter."""
    wanted = table()["python"]
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return problem("python", f"{version}, and zephyrctl wants {wanted}", "make an environment with such a Python")
    return ok("python", f"{version}, {sys.executable}")


def libraries(versions: Mapping[str, str | None], has_gpu: bool) -> Iterator[Finding]:
    """A finding for each library that is missing or out of its range, and one for all that are not the tested ones."""
    other = []
    for package, version in versions.items():
        entry = table()["required"][package]
        told = version_of(package, version, entry["range"])
        if told and package in GPU_ONLY and not has_gpu:
            yield note(package, told.what, told.remedy)
        elif told:
            yield told
        elif entry["tested"] and _public(version) != entry["tested"]:
            other.append(f"{package} {version} (tested {entry['tested']})")
    if other:
        yield note(
            "libraries", f"in range and untested: {', '.join(other)}", "pip install -c constraints.txt zephyrctl"
        )
    else:
        yield ok("libraries", f"{len(versions)} required libraries are looked at")


def version_of(package: str, version: str | None, wanted: str) -> Finding | None:
    """What is wrong with a version, if anything."""
    remedy = f"pip install '{package}{wanted}'"
    if version is None:
        return problem(package, "not installed", remedy)
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return problem(package, f"{version}, and zephyrctl wants {wanted}", remedy)
    return None


def extra(package: str, purpose: str, version: str | None) -> Finding:
    """An optional package."""
    entry = table()["extras"][package]
    if version is None:
        return note(package, f"not installed; it is for {purpose}", f"pip install 'zephyrctl[{entry['extra']}]'")
    told = version_of(package, version, entry["range"])
    return note(package, told.what, told.remedy) if told else ok(package, version)


def compilers() -> Finding:
    """What DeepSpeed compiles its parts with at their first use: 85 s on two cores, once."""
    missing = [name for name in ("g++", "ninja") if not shutil.which(name)]
    if missing:
        lacks = " and ".join(missing)
        return note("compilers", f"there is no {lacks}, which DeepSpeed compiles with", f"install {lacks}")
    return ok("compilers", "g++ and ninja, which DeepSpeed compiles with")


def _public(version: str | None) -> str:
    """A version without its build: 2.13.0 of 2.13.0+cu128."""
    return (version or "").partition("+")[0]
