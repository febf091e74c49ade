"""Plugin packages as an installer leaves them: a module and a dist-info folder with its entry points."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from pathlib import Path

import pytest

FIRST_PARTY = sorted(path.parent for path in (Path(__file__).parents[2] / "plugins").glob("*/pyproject.toml"))
"""The packages of this repository."""


def install(folder: Path, name: str, code: str, version: str = "1.0", entries: dict[str, str] | None = None) -> Path:
    """Write a package `name` with one module into a folder of installed packages; the folder again.

    Without `entries` there is one entry point that names the module.
    """
    module = name.replace("-", "_")
    information = folder / f"{module}-{version}.dist-info"
    information.mkdir(parents=True)
    (folder / f"{module}.py").write_text(code)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = "\n".join(f"{key} = {value}" for key, value in (entries or {name: module}).items())
    (information / "entry_points.txt").write_text(f"[zephyrctl]\n{lines}\n")
    return folder


def python_path(folder: Path) -> str:
    """PYTHONPATH of a process that shall see the packages of this folder."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def pip_install(sources: Iterable[Path], folder: Path) -> Path:
    """Have pip build and install packages into a folder of their own, from copies; that folder.

    Skips where there is nothing to build them with.
    """
    pytest.importorskip("pip", reason="no pip in this environment to install with")
    copies = [folder / "sources" / source.name for source in sources]
    for source, copy in zip(sources, copies, strict=True):
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    command = [*pip, *isolation, "--target", str(folder / "installed"), *map(str, copies)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode and not isolation and "hatchling" in done.stderr:
        pytest.skip("hatchling, which builds the packages, is neither installed nor to be had from an index")
    assert done.returncode == 0, done.stderr
    return folder / "installed"


def environment_with(package: Path, folder: Path) -> Path:
    """The Python of a fresh environment into which pip installed one package; ours lies behind it for all else."""
    pytest.importorskip("pip", reason="no pip in this environment to install with")
    venv.create(folder / "environment", with_pip=False, symlinks=True)
    (site_packages,) = (folder / "environment" / "lib").glob("python*/site-packages")
    ours = sysconfig.get_path("purelib")
    (site_packages / "behind.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    python = folder / "environment" / "bin" / "python"
    source = folder / "sources" / package.name
    shutil.copytree(package, source, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    done = subprocess.run(
        [*pip, "--no-deps", *isolation, str(source)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return python


def run_tests(folders: Iterable[Path], installed: Path, cwd: Path) -> str:
    """What pytest says of tests that see installed packages and nothing of this checkout's own settings."""
    environment = {**os.environ, "PYTHONPATH": python_path(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    options = ["-c", os.devnull, "--rootdir", str(cwd), "-p", "no:cacheprovider", "-q", "-rs"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *map(str, folders)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
