"""The manifest of an artifact: what it was made from and by, its files with their hashes, and what was dropped."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from zephyrctl import __version__
from zephyrctl.recipe.loading import flatten

MANIFEST = "manifest.json"
SCRATCH = ".scratch"
"""The folder of a draft for work that does not belong to the artifact."""
NOT_CONTENT = frozenset({MANIFEST, "plan.json", "spent.json", "plan.json.part", "spent.json.part", SCRATCH})
"""What lies beside an artifact's own files and is not listed in its manifest."""
LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "deepspeed",
    "huggingface_hub",
    "lm-eval",
    "pydantic",
    "typer",
)
SHOWN_LENGTH = 40
"""Longer values, hashes above all, are cut in lists of changes."""

HashResult = TypeVar("HashResult")


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(extra="forbid")

    sha256: str
    bytes: int = Field(ge=0)
    rows: int | None = Field(default=None, description="rows, for Parquet files")


class Plan(BaseModel):
    """What a stage is about to do. The same plan gives the same artifact, so it is not run twice."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="folder of the artifact in the run")
    stage: str = Field(description="build, feedback, binarize, a kind of training, eval or push")
    settings: dict[str, Any] = Field(description="resolved settings that the result depends on")
    inputs: dict[str, str] = Field(description="input: content hash")
    zephyrctl: str = __version__

    def changes(self, other: "Plan") -> list[str]:
        """What differs from another plan, as lines `key: old -> new`."""
        old = {**flatten(other.settings), **_prefixed(other.inputs), "zephyrctl": other.zephyrctl}
        new = {**flatten(self.settings), **_prefixed(self.inputs), "zephyrctl": self.zephyrctl}
        keys = [*new, *(key for key in old if key not in new)]
        return [
            f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}" for key in keys if old.get(key) != new.get(key)
        ]


class Manifest(BaseModel):
    """What an artifact is, where it came from, and what was dropped on the way."""

    model_config = ConfigDict(extra="forbid")

    plan: Plan
    input_paths: dict[str, str] = Field(description="input: its path when it was read")
    libraries: dict[str, str] = Field(description="library: version")
    plugins: dict[str, str] = Field(
        default_factory=dict, description="plugin package: version; plugin file: hash of its content"
    )
    files: dict[str, FileEntry]
    metrics: dict[str, Any] = Field(default_factory=dict)
    dropped: dict[str, int] = Field(
        default_factory=dict,
        description="cause: dropped rows",
        validation_alias=AliasChoices("dropped", "losses"),  # `losses` until version 0.1
    )
    notes: list[str] = Field(default_factory=list, description="what a reader of the figures must know")
    finished_at: str
    seconds: float = Field(ge=0, description="wall time, summed over resumed attempts")
    cost_usd: float = Field(default=0.0, ge=0)

    @property
    def content_hash(self) -> str:
        """The hash of the artifact's files, by which later stages know it."""
        return digest({name: entry.sha256 for name, entry in self.files.items()})


def digest(value: object) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(path: Path) -> str:
    """The hash of every file of a folder, by relative name."""
    return digest(_hash_all(hash_file, path))


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """The entry of each of an artifact's own files, by relative name."""
    return _hash_all(_describe_file, folder)


@cache
def library_versions() -> dict[str, str]:
    """The versions of the libraries that results depend on, read from their metadata: nothing is imported."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _describe_file(path: Path) -> FileEntry:
    rows = pq.ParquetFile(path).metadata.num_rows if path.suffix == ".parquet" else None
    return FileEntry(sha256=hash_file(path), bytes=path.stat().st_size, rows=rows)


def _hash_all(hash_one: Callable[[Path], HashResult], folder: Path) -> dict[str, HashResult]:
    """The files of a folder, hashed in threads: hashing releases the interpreter lock."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    by_name = {str(path.relative_to(folder)): path for path in paths if _is_content(path.relative_to(folder))}
    with ThreadPoolExecutor() as threads:
        return dict(zip(by_name, threads.map(hash_one, by_name.values()), strict=True))


def _is_content(relative: Path) -> bool:
    return relative.parts[0] not in NOT_CONTENT


def _prefixed(inputs: Mapping[str, str]) -> dict[str, str]:
    return {f"input {name}": value for name, value in inputs.items()}


def _short(value: object) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    return text if len(text) <= SHOWN_LENGTH else f"{text[:12]}..."
