"""Fetch the published files of benchmarks into a cache, and find them there or in a folder of the user."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field

from zephyrctl import __version__, templates
from zephyrctl.disk import whole
from zephyrctl.errors import ZephyrError

PROTOCOLS = "benchmarks.yaml"
CACHE_VARIABLE = "ZEPHYRCTL_CACHE"
TIMEOUT_SECONDS = 60
MAX_BYTES = 2**28
"""256 MiB: far more than any file of a benchmark, so that a wrong address cannot fill the memory."""


class Pinned(BaseModel):
    """One published file, pinned to its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(description="at a fixed commit, so that the file does not change")
    sha256: str = Field(description="of its bytes")
    names: list[str] = Field(min_length=1, description="names it may have in a folder of the user")


class Protocol(BaseModel):
    """How a benchmark was published: its files, and its settings for answers and judgments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    licence: str
    files: dict[str, Pinned]
    rows: dict[str, str] = Field(
        default_factory=dict, description="file: sha256 of its rows, which does not depend on the file format"
    )
    questions: int
    categories: list[str] = Field(default_factory=list)
    temperatures: dict[str, float] = Field(
        default_factory=dict, description="category: temperature; 0 for other categories"
    )
    top_k: int = Field(default=0, description="most likely tokens to draw from; 0 is all")
    guided: list[str] = Field(default_factory=list, description="categories in which the judge sees a reference answer")
    judge: dict[str, float]
    judges: list[str] = Field(description="model ids of the judges of the published scores")


@cache
def protocols() -> dict[str, Protocol]:
    """Each benchmark with published files, by its name."""
    document: dict[str, object] = yaml.safe_load(templates.read(PROTOCOLS))
    return {name: Protocol.model_validate(value) for name, value in document.items()}


@dataclass(frozen=True)
class Asset:
    """One file of a benchmark, and whether it is the published one."""

    name: str
    path: Path
    sha256: str
    is_published: bool


@dataclass(frozen=True)
class Assets:
    """The files of one benchmark: in the given folder, else in the cache."""

    benchmark: str
    folder: Path | None = None

    @property
    def protocol(self) -> Protocol:
        """How the benchmark was published."""
        return protocols()[self.benchmark]

    def path(self, name: str) -> Path:
        """The path of a file. Raises ZephyrError, which says how to get the file, if it is missing."""
        pinned = self.protocol.files[name]
        if self.folder is None:
            path = cached(pinned)
            if path.is_file():
                return path
            raise ZephyrError(
                f"{pinned.names[0]}, the {name} of {self.benchmark}, is not on this machine",
                f"zephyrctl eval fetch {self.benchmark}, or give a folder with {pinned.names[0]}: --assets DIR",
            )
        for folder in self._folders(self.folder):
            for file_name in pinned.names:
                if (folder / file_name).is_file():
                    return folder / file_name
        raise ZephyrError(
            f"{self.folder} contains no {name} of {self.benchmark} ({' or '.join(pinned.names)})",
            "give the folder that contains them, or leave out --assets to use the published ones",
        )

    def get(self, name: str) -> Asset:
        """A file with its hash. Raises ZephyrError if it is missing, or if the file in the cache was changed."""
        path = self.path(name)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        is_published = digest == self.protocol.files[name].sha256
        if self.folder is None and not is_published:
            raise ZephyrError(
                f"{path} has changed since it was fetched", f"remove it, then: zephyrctl eval fetch {self.benchmark}"
            )
        return Asset(name, path, digest, is_published)

    def _folders(self, folder: Path) -> list[Path]:
        """The folder, and its subfolders with the name of the benchmark."""
        return [folder, folder / self.benchmark, folder / self.benchmark.replace("-", "_")]


def cache_folder() -> Path:
    """$ZEPHYRCTL_CACHE, else the folder zephyrctl in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zephyrctl"


def cached(pinned: Pinned) -> Path:
    """The path of a published file in the cache. It contains the hash, so a file with another pin has another path."""
    return cache_folder() / "benchmarks" / pinned.sha256[:16] / Path(urlsplit(pinned.url).path).name


def fetch(benchmarks: Iterable[str], mirror: str | None = None) -> list[Asset]:
    """Download the files of benchmarks into the cache, except those that it already contains.

    `mirror` replaces scheme and host in each address. Raises ZephyrError if a file cannot be downloaded, or if its
    hash is not the pinned one; such a file is not kept.
    """
    files = [entry for benchmark in benchmarks for entry in protocols()[benchmark].files.items()]
    return [_fetch(name, pinned, mirror) for name, pinned in files]


def _fetch(name: str, pinned: Pinned, mirror: str | None) -> Asset:
    path = cached(pinned)
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == pinned.sha256:
        return Asset(name, path, pinned.sha256, is_published=True)
    url = pinned.url if mirror is None else mirror.rstrip("/") + urlsplit(pinned.url).path
    content = _download(url)
    if (digest := hashlib.sha256(content).hexdigest()) != pinned.sha256:
        raise ZephyrError(
            f"{url} is not the pinned file: its sha256 is {digest[:16]}..., and {pinned.sha256[:16]}... is expected",
            "try again; if it fails again, the source has changed: give the published file in a folder, --assets DIR",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        part.write_bytes(content)
    return Asset(name, path, digest, is_published=True)


def _download(url: str) -> bytes:
    if not url.startswith(("https://", "http://")):
        raise ZephyrError(f"{url!r} is not an address", "give a mirror that begins with https:// or http://")
    request = urllib.request.Request(url, headers={"User-Agent": f"zephyrctl/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            content: bytes = response.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        problem = f"{url}: {error.code} {error.reason}"
    except (OSError, http.client.HTTPException) as error:
        problem = f"{url} cannot be reached: {getattr(error, 'reason', None) or error or type(error).__name__}"
    else:
        if len(content) <= MAX_BYTES:
            return content
        problem = f"{url} sends more than {MAX_BYTES} bytes"
    raise ZephyrError(
        problem, "fetch it on a machine with a network and give the folder: --assets DIR; or give --mirror URL"
    )
