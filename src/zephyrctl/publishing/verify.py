"""Check that a published model is what its manifests say, and list what could not be reproduced."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Protocol

from pydantic import JsonValue, ValidationError

from zephyrctl import __version__
from zephyrctl.data.results import RowsResult
from zephyrctl.errors import ZephyrError
from zephyrctl.publishing.reported_run import TRAINING
from zephyrctl.publishing.stage_settings import StageSettings
from zephyrctl.publishing.uploads import FOLDER, MODEL, looks_pickled, model_entries
from zephyrctl.runs.manifest import Manifest, hash_file, library_versions

MANIFEST = "manifest.json"
SAFETENSORS = ".safetensors"
"""Weights: their hashes identify the checkpoint, and are computed once because the files are large."""
RENDERED = ("README.md", ".gitattributes")
"""Files of a repository that are in no manifest: the card is rendered from manifests, the other one is the Hub's."""


class PublishedModel(Protocol):
    """A published model, in a folder or in a repository on the Hub."""

    name: str

    def files(self) -> Mapping[str, str | None]:
        """Every file by its path, with its sha256 if that is known without reading it."""

    def read(self, path: str) -> bytes:
        """The content of one file."""

    def sha256(self, path: str) -> str:
        """The hash of one file."""


@dataclass(frozen=True)
class Verification:
    """The result: how many files were checked, what contradicts a manifest, and what cannot be reproduced."""

    place: str
    checkpoint: str
    checked: int
    problems: tuple[str, ...]
    unrepeatable: tuple[str, ...]
    chain: tuple[str, ...] = field(default=())

    @property
    def is_whole(self) -> bool:
        """True if nothing contradicts a manifest."""
        return not self.problems


class ModelFolder:
    """A published model in a folder: a clone or a download."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    def files(self) -> Mapping[str, str | None]:
        """Every file that is not in a hidden folder."""
        paths = (path for path in sorted(self.path.rglob("*")) if path.is_file())
        names = (str(path.relative_to(self.path)) for path in paths)
        return {name: None for name in names if not any(part.startswith(".") for part in Path(name).parts[:-1])}

    def read(self, path: str) -> bytes:
        """The content of one file."""
        return (self.path / path).read_bytes()

    def sha256(self, path: str) -> str:
        """The hash of one file."""
        return hash_file(self.path / path)


class RunCheckpoint(ModelFolder):
    """A run's checkpoint before it is published: its model, and the manifests of the artifacts behind it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        manifests = self._chain(path)
        self._paths = {f"{FOLDER}/{name}/{MANIFEST}": folder / MANIFEST for name, folder in manifests.items()}
        model = path / MODEL
        self._paths |= {str(file.relative_to(model)): file for file in sorted(model.rglob("*")) if file.is_file()}

    def files(self) -> Mapping[str, str | None]:
        """Every file by the path that it would have on the Hub."""
        return dict.fromkeys(self._paths)

    def read(self, path: str) -> bytes:
        """The content of one file."""
        return self._paths[path].read_bytes()

    def sha256(self, path: str) -> str:
        """The hash of one file."""
        return hash_file(self._paths[path])

    def _chain(self, path: Path) -> dict[str, Path]:
        """The artifact and those that it was made from, if they are in the same run folder."""
        folders = {path.name: path}
        try:
            manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
        except ValidationError:
            return folders  # the reader of the manifest reports it
        for name in manifest.input_paths.values():
            beside = path.parent / name
            if name and beside.parent == path.parent and (beside / MANIFEST).is_file():
                folders |= self._chain(beside)
        return folders


def open_folder(path: Path) -> PublishedModel:
    """The model in a folder: a run's checkpoint (its artifact, or the model in it), else a published model."""
    artifact = path.parent if path.name == MODEL.rstrip("/") else path
    if (artifact / MANIFEST).is_file() and (artifact / MODEL).is_dir():
        return RunCheckpoint(artifact.absolute())
    return ModelFolder(path)


def verify(model: PublishedModel) -> Verification:
    """Hash every file and compare it with the manifests, and the manifests with each other.

    Raises ZephyrError if there are no manifests of ours.
    """
    files = dict(model.files())
    for name, sha256 in files.items():
        if sha256 is None and name.endswith(SAFETENSORS):
            files[name] = model.sha256(name)
    manifests = dict(sorted(_manifests(model, files), key=lambda pair: pair[1].finished_at))
    checkpoint = _checkpoint(model, files, manifests)
    problems = [
        *_check_files(model, files, checkpoint),
        *_check_links(manifests),
        *(f"{name} is a pickle, which runs code when it is loaded" for name in files if looks_pickled(name)),
    ]
    return Verification(
        place=model.name,
        checkpoint=checkpoint.plan.name,
        checked=len(model_entries(checkpoint)),
        problems=tuple(problems),
        unrepeatable=tuple(_unrepeatable(manifests)),
        chain=tuple(manifests),
    )


def as_json(verification: Verification) -> dict[str, JsonValue]:
    """The verification as one JSON object."""
    values: dict[str, JsonValue] = json.loads(json.dumps(asdict(verification)))
    return {"is_whole": verification.is_whole, **values}


def _manifests(model: PublishedModel, files: Mapping[str, str | None]) -> Iterator[tuple[str, Manifest]]:
    for path in files:
        parts = PurePosixPath(path).parts
        if len(parts) == 3 and parts[0] == FOLDER and parts[2] == MANIFEST:
            try:
                yield parts[1], Manifest.model_validate_json(model.read(path))
            except ValidationError:
                raise ZephyrError(
                    f"{path} of {model.name} is damaged or was written by another version of zephyrctl",
                    "verify it with the version that published it; its card names the version",
                ) from None


def _checkpoint(model: PublishedModel, files: Mapping[str, str | None], manifests: Mapping[str, Manifest]) -> Manifest:
    """The manifest of the published checkpoint: of all trained models, the one that has these weights."""
    trained = [manifest for manifest in manifests.values() if manifest.plan.stage in TRAINING]
    if not trained:
        raise ZephyrError(
            f"{model.name} contains no manifest of a checkpoint ({FOLDER}/*/{MANIFEST})",
            "give a model that `zephyrctl push` published: a folder, or ORG/NAME",
        )
    hashes = {sha256 for name, sha256 in files.items() if name.endswith(SAFETENSORS)}
    matching = [manifest for manifest in trained if hashes & {entry.sha256 for entry in manifest.files.values()}]
    return max(matching or trained, key=lambda manifest: manifest.finished_at)


def _check_files(model: PublishedModel, files: Mapping[str, str | None], checkpoint: Manifest) -> Iterator[str]:
    listed = model_entries(checkpoint)
    for name, entry in listed.items():
        if name == "README.md":
            continue
        if name not in files:
            yield f"{name} is missing"
            continue
        sha256 = files[name] or model.sha256(name)
        if sha256 != entry.sha256:
            hashes = f"its sha256 is {sha256[:12]}, not {entry.sha256[:12]}"
            yield f"{name} is not the file that {checkpoint.plan.name} wrote: {hashes}"
    for name in files:
        if name not in listed and name not in RENDERED and PurePosixPath(name).parts[0] != FOLDER:
            yield f"{name} is in no manifest"


def _check_links(manifests: Mapping[str, Manifest]) -> Iterator[str]:
    """A sentence for each manifest that was made from another artifact than the one whose manifest is published."""
    for name, manifest in manifests.items():
        for input, path in manifest.input_paths.items():
            source, content = manifests.get(path), manifest.plan.inputs.get(input)
            if source is not None and content is not None and source.content_hash != content:
                yield f"{name} read another {path} than the one whose manifest is here"


def _unrepeatable(manifests: Mapping[str, Manifest]) -> Iterator[str]:
    """What would keep somebody from making the same model again, as far as the manifests say."""
    for name, manifest in manifests.items():
        yield from (f"{name}: {reason}" for reason in _reasons(manifest, manifests))
    versions: dict[str, str] = {}
    for manifest in manifests.values():
        versions |= manifest.libraries
    installed = library_versions()
    differences = [
        f"{name} {version} (here {installed.get(name, 'none')})"
        for name, version in versions.items()
        if installed.get(name) != version
    ]
    if differences:
        yield f"made with other versions than those here: {', '.join(differences)}"
    releases = {manifest.plan.zephyrctl for manifest in manifests.values()} - {__version__}
    if releases:
        yield f"made with zephyrctl {', '.join(sorted(releases))}, and this is {__version__}"
    plugins = {name: version for manifest in manifests.values() for name, version in manifest.plugins.items()}
    for name, version in plugins.items():
        if not _is_installed(name):
            yield f"the plugin {name} {version} is not installed here"


def _reasons(manifest: Manifest, manifests: Mapping[str, Manifest]) -> Iterator[str]:
    settings = StageSettings.of(manifest.plan)
    for input, path in manifest.input_paths.items():
        if path not in manifests:
            yield f"{input} was read from {path or 'elsewhere'}, which is not published here"
    if settings.source.kind == "hub" and not settings.source.revision:
        yield "its data set on the Hub is not pinned to a revision"
    if settings.published and not settings.published_revision:
        yield "its published ratings are not pinned to a revision"
    if calls := RowsResult.of(manifest).calls:
        yield f"{calls:,} calls to teachers, whose answers may differ next time"
    if manifest.plan.stage in TRAINING and settings.launch.precision == "bf16":
        yield "trained in bf16, which gives other last digits on other hardware"


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
