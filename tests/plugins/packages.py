"""Plugin packages as an installer leaves them: a module and a dist-info folder with its entry points."""

import os
from pathlib import Path


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
