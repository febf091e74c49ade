"""What a push sends: files of this machine or rendered ones, each with its size and hash."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyrctl.publishing.hub import RepoType
from zephyrctl.publishing.secrets import TEXTS, secrets_in
from zephyrctl.runs.manifest import FileEntry, Manifest

FOLDER = "zephyrctl"
"""The folder of a repository that holds manifests."""
MODEL = "model/"
"""The folder of a checkpoint's artifact whose files become those of the repository."""
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
WEIGHTS = (".safetensors", ".safetensors.index.json", *PICKLED)


@dataclass(frozen=True)
class UploadFile:
    """One file that goes to the Hub: where to, from which file or which bytes, and what it weighs."""

    path: str
    source: Path | bytes
    bytes: int
    sha256: str

    def text(self) -> str:
        """Its content as text; what is no UTF-8 is replaced."""
        content = self.source.read_bytes() if isinstance(self.source, Path) else self.source
        return content.decode("utf-8", errors="replace")


@dataclass(frozen=True)
class Objection:
    """Something that speaks against publishing; who knows better waives it by its name."""

    name: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class Upload:
    """Everything that a push would send, what its reader should know, and what speaks against it."""

    title: str
    files: tuple[UploadFile, ...]
    notes: tuple[str, ...]
    objections: tuple[Objection, ...] = ()
    card: str = ""
    repo_type: RepoType = "model"

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file.bytes for file in self.files)

    def rows(self) -> list[dict[str, Any]]:
        """The files as JSON holds them: path, bytes, sha256 and local source (None where rendered)."""
        return [{**vars(file), "source": _origin(file)} for file in self.files]


def model_entries(manifest: Manifest) -> dict[str, FileEntry]:
    """The files of a checkpoint's model by the path that they have in a repository."""
    return {name.removeprefix(MODEL): entry for name, entry in manifest.files.items() if name.startswith(MODEL)}


def rendered(path: str, text: str) -> UploadFile:
    """A file that exists nowhere yet."""
    content = text.encode()
    return UploadFile(path, content, len(content), hashlib.sha256(content).hexdigest())


def looks_pickled(name: str) -> bool:
    """True for weights that run code when they are loaded."""
    return name.lower().endswith(PICKLED)


def secrets_of(files: tuple[UploadFile, ...]) -> Iterator[Objection]:
    """An objection for every file of text that holds what looks like a key."""
    for file in files:
        if file.path.endswith(TEXTS):
            for problem in secrets_in(file.path, file.text()):
                yield Objection("secrets", problem, "take it out, name an environment variable there, and revoke it")


def _origin(file: UploadFile) -> str | None:
    return str(file.source) if isinstance(file.source, Path) else None
