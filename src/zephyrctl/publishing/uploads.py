"""What a push sends: local or rendered files with their sizes and hashes, and the checks that failed."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zephyrctl.publishing.hub import RepoType
from zephyrctl.publishing.secrets import TEXTS, secrets_in
from zephyrctl.runs.manifest import FileEntry, Manifest

FOLDER = "zephyrctl"
"""The folder of a repository that contains the manifests."""
MODEL = "model/"
"""The folder of a checkpoint's artifact whose files become those of the repository."""
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
WEIGHTS = (".safetensors", ".safetensors.index.json", *PICKLED)


@dataclass(frozen=True)
class UploadFile:
    """One file that goes to the Hub: its path there, its local file or its content, its size and its hash."""

    path: str
    source: Path | bytes
    bytes: int
    sha256: str

    def text(self) -> str:
        """Its content as text; bytes that are not UTF-8 are replaced."""
        content = self.source.read_bytes() if isinstance(self.source, Path) else self.source
        return content.decode("utf-8", errors="replace")


@dataclass(frozen=True)
class FailedCheck:
    """A reason not to publish. `--waive NAME` publishes all the same."""

    name: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class Upload:
    """Everything that a push would send, what its reader should know, and the checks that failed."""

    title: str
    files: tuple[UploadFile, ...]
    notes: tuple[str, ...]
    failed_checks: tuple[FailedCheck, ...] = ()
    card: str = ""
    repo_type: RepoType = "model"

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file.bytes for file in self.files)


def model_entries(manifest: Manifest) -> dict[str, FileEntry]:
    """The files of a checkpoint's model, by their path in a repository."""
    return {name.removeprefix(MODEL): entry for name, entry in manifest.files.items() if name.startswith(MODEL)}


def rendered(path: str, text: str) -> UploadFile:
    """A file whose content is not on disk."""
    content = text.encode()
    return UploadFile(path, content, len(content), hashlib.sha256(content).hexdigest())


def looks_pickled(name: str) -> bool:
    """True for weights that run code when they are loaded."""
    return name.lower().endswith(PICKLED)


def check_secrets(files: tuple[UploadFile, ...]) -> Iterator[FailedCheck]:
    """A failed check for each text file that contains what looks like a key."""
    for file in files:
        if file.path.endswith(TEXTS):
            for problem in secrets_in(file.path, file.text()):
                yield FailedCheck("secrets", problem, "name an environment variable instead, and revoke the key")
