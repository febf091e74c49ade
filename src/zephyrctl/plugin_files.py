"""Plugins in one file: import the Python files that a recipe lists under `plugins`, here and in worker processes.

The list travels in an environment variable, so that spawned processes have it too. A file is imported as the module
`zephyrctl.plugin_files.STEM_HASH`: the hash is of its path and content, so what one process pickles, another imports
from the same content or not at all.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from zephyrctl.errors import ZephyrError

VARIABLE = "ZEPHYRCTL_PLUGIN_FILES"
"""A JSON list in one line: of each file its absolute path and the sha256 of its content."""
__path__: list[str] = []
"""Makes this module a package for Python's import system; `_Finder` finds the modules in it."""


@dataclass(frozen=True)
class PluginFile:
    """A plugin file with the content that it had when the command started."""

    path: Path
    sha256: str

    @property
    def module(self) -> str:
        """The full name of the module that it is imported as."""
        identity = _hash(f"{self.sha256} {self.path}".encode())
        return f"{__name__}.{self.path.stem.replace('.', '_')}_{identity[:12]}"

    @property
    def version(self) -> str:
        """What manifests state where they state the version of a package."""
        return f"sha256:{self.sha256}"


def use(paths: Iterable[Path]) -> None:
    """Make these the plugin files of this process and of those that it starts, in place of any others.

    Raises ZephyrError for a file that cannot be read. Nothing is imported yet.
    """
    files = [PluginFile(path.absolute(), _hash(_read(path))) for path in paths]
    if files:
        os.environ[VARIABLE] = json.dumps([[str(file.path), file.sha256] for file in files])
    else:
        os.environ.pop(VARIABLE, None)


def in_use() -> tuple[PluginFile, ...]:
    """The plugin files of this process."""
    entries = json.loads(os.environ.get(VARIABLE) or "[]")
    return tuple(PluginFile(Path(path), sha256) for path, sha256 in entries)


def import_file(file: PluginFile) -> ModuleType:
    """Import a plugin file. Raises ZephyrError if its content has changed, and whatever the file itself raises."""
    return import_module(file.module)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ZephyrError(
            f"cannot read the plugin file {path}: {error.strerror}",
            "fix its path in `plugins`; it is relative to the recipe file that lists it",
        ) from None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Loader(SourceLoader):
    """Compile a plugin file. Nothing is written beside it: `SourceLoader` caches no bytecode by itself."""

    def __init__(self, file: PluginFile) -> None:
        self._file = file

    def get_filename(self, fullname: str) -> str:
        return str(self._file.path)

    def get_data(self, path: str) -> bytes:
        content = _read(Path(path))
        if _hash(content) != self._file.sha256:
            raise ZephyrError(
                f"the plugin file {path} changed while the command was running", "run the same command again"
            )
        return content


class _Finder(MetaPathFinder):
    """Find the modules of the plugin files in use."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{__name__}."):
            return None
        for file in in_use():
            if file.module == fullname:
                return spec_from_file_location(fullname, file.path, loader=_Loader(file))
        return None


sys.meta_path.append(_Finder())
