"""Where the texts of benchmarks come from: pinned sources, fetched into a cache, or a folder of your own."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field

from zephyrctl import __version__, templates
from zephyrctl.disk import whole
from zephyrctl.errors import ZephyrError

PROTOCOLS = "benchmarks.yaml"
CACHE_VARIABLE = "ZEPHYRCTL_CACHE"
TIMEOUT_SECONDS = 60
LARGEST = 2**28
"""Bytes; no file of a benchmark is near it."""


class Pinned(BaseModel):
    """One published file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(description="at a commit, so that it does not move")
    sha256: str = Field(description="of its bytes")
    names: list[str] = Field(min_length=1, description="what it may be called in a folder of your own")


class Protocol(BaseModel):
    """How a benchmark was published: its files, and the figures by which it asks and judges."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    licence: str
    files: dict[str, Pinned]
    rows: dict[str, str] = Field(default_factory=dict, description="file: sha256 of its rows, whatever their form")
    questions: int
    categories: list[str] = Field(default_factory=list)
    temperatures: dict[str, float] = Field(default_factory=dict, description="category: temperature; 0 elsewhere")
    top_k: int = Field(default=0, description="most likely tokens that are drawn from; 0 is all")
    guided: list[str] = Field(default_factory=list, description="categories whose judge sees a reference")
    judge: dict[str, float]
    judges: list[str] = Field(description="model ids that gave the published scores")


@cache
def protocols() -> dict[str, Protocol]:
    """Every benchmark by its name."""
    read: dict[str, Any] = yaml.safe_load(templates.read(PROTOCOLS))
    return {name: Protocol.model_validate(value) for name, value in read.items()}


@dataclass(frozen=True)
class Asset:
    """One file of a benchmark, and whether it is the published one."""

    name: str
    path: Path
    sha256: str
    is_published: bool


@dataclass(frozen=True)
class Assets:
    """The files of one benchmark: from a folder where one is given, else from the cache."""

    benchmark: str
    folder: Path | None = None

    @property
    def protocol(self) -> Protocol:
        """How the benchmark was published."""
        return protocols()[self.benchmark]

    def path(self, name: str) -> Path:
        """Where a file lies. Raises ZephyrError that says how to get it."""
        pinned = self.protocol.files[name]
        if self.folder is None:
            path = cached(pinned)
            if path.is_file():
                return path
            raise ZephyrError(
                f"{pinned.names[0]}, the {name} of {self.benchmark}, is not on this machine",
                f"zephyrctl eval fetch {self.benchmark}, or give a folder that holds {pinned.names[0]}: --assets DIR",
            )
        places = [folder / one for folder in self._folders(self.folder) for one in pinned.names]
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise ZephyrError(
                f"{self.folder} holds no {name} of {self.benchmark} ({' or '.join(pinned.names)})",
                "give the folder that holds them, or leave out --assets to take the published ones",
            )
        return found

    def get(self, name: str) -> Asset:
        """A file with its hash. Raises ZephyrError where it is not there, or where the cached one is damaged."""
        path = self.path(name)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        is_published = digest == self.protocol.files[name].sha256
        if self.folder is None and not is_published:
            raise ZephyrError(
                f"{path} is not what was fetched", f"remove it, then: zephyrctl eval fetch {self.benchmark}"
            )
        return Asset(name, path, digest, is_published)

    def _folders(self, folder: Path) -> list[Path]:
        """The folder, and one of the benchmark's name within it."""
        return [folder, folder / self.benchmark, folder / self.benchmark.replace("-", "_")]


def cache_folder() -> Path:
    """$ZEPHYRCTL_CACHE, else zephyrctl in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zephyrctl"


def cached(pinned: Pinned) -> Path:
    """Where a published file lies once it is fetched: under its hash, so that another pin is another file."""
    return cache_folder() / "benchmarks" / pinned.sha256[:16] / Path(urlsplit(pinned.url).path).name


def fetch(benchmarks: Iterable[str], mirror: str | None = None) -> list[Asset]:
    """Bring the files of benchmarks into the cache; what is there and whole is not fetched again.

    `mirror` takes the place of scheme and host in every address. Raises ZephyrError where a file cannot be had or is
    not the pinned one, which is then not kept.
    """
    return [_fetch(name, pinned, mirror) for benchmark in benchmarks for name, pinned in _files(benchmark)]


def _files(benchmark: str) -> Sequence[tuple[str, Pinned]]:
    return list(protocols()[benchmark].files.items())


def _fetch(name: str, pinned: Pinned, mirror: str | None) -> Asset:
    path = cached(pinned)
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == pinned.sha256:
        return Asset(name, path, pinned.sha256, is_published=True)
    url = pinned.url if mirror is None else mirror.rstrip("/") + urlsplit(pinned.url).path
    content = _download(url)
    if (digest := hashlib.sha256(content).hexdigest()) != pinned.sha256:
        raise ZephyrError(
            f"{url} is not the pinned file: its sha256 is {digest[:16]}..., and {pinned.sha256[:16]}... is expected",
            "try again; where it stays so, the source has changed: give the published file in a folder, --assets DIR",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        part.write_bytes(content)
    return Asset(name, path, digest, is_published=True)


def _download(url: str) -> bytes:
    if not url.startswith(("https://", "http://")):
        raise ZephyrError(f"{url!r} is no address", "a mirror begins with https:// or http://")
    request = urllib.request.Request(url, headers={"User-Agent": f"zephyrctl/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            content: bytes = response.read(LARGEST + 1)
    except urllib.error.HTTPError as error:
        problem = f"{url}: {error.code} {error.reason}"
    except (OSError, http.client.HTTPException) as error:
        problem = f"{url} cannot be reached: {getattr(error, 'reason', None) or error or type(error).__name__}"
    else:
        if len(content) <= LARGEST:
            return content
        problem = f"{url} sends more than {LARGEST} bytes"
    raise ZephyrError(problem, "fetch it where there is a network, and give the folder: --assets DIR; or --mirror URL")
