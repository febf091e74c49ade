"""Whether a published model is what its manifests say, and what of it could not be made again."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from pydantic import ValidationError

from zephyrctl import __version__
from zephyrctl.errors import ZephyrError
from zephyrctl.publishing.subject import TRAINING
from zephyrctl.publishing.uploads import FOLDER, MODEL, looks_pickled, model_entries
from zephyrctl.recipe.loading import flatten
from zephyrctl.runs.manifest import Manifest, hash_file, library_versions

MANIFEST = "manifest.json"
SAFETENSORS = ".safetensors"
"""Files of weights: their hashes say which checkpoint these are, and are taken once."""
RENDERED = ("README.md", ".gitattributes")
"""Files of a repository that no manifest holds: the card is rendered from manifests, the other is the Hub's."""


class Place(Protocol):
    """Where a published model lies: a folder, or a repository on the Hub."""

    name: str

    def files(self) -> Mapping[str, str | None]:
        """Every file by its path, with its sha256 where that is known without reading it."""

    def read(self, path: str) -> bytes:
        """The content of one file."""

    def sha256(self, path: str) -> str:
        """The hash of one file."""


@dataclass(frozen=True)
class Verdict:
    """What was found: files that are as their manifest says, what is not, and what nobody could repeat."""

    place: str
    checkpoint: str
    checked: int
    problems: tuple[str, ...]
    unrepeatable: tuple[str, ...]
    chain: tuple[str, ...] = field(default=())

    @property
    def is_whole(self) -> bool:
        """True where nothing contradicts a manifest."""
        return not self.problems


class Folder:
    """A published model in a folder: a clone or a download."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    def files(self) -> Mapping[str, str | None]:
        """Every file but hidden folders'."""
        found = (path for path in sorted(self.path.rglob("*")) if path.is_file())
        names = (str(path.relative_to(self.path)) for path in found)
        return {name: None for name in names if not any(part.startswith(".") for part in Path(name).parts[:-1])}

    def read(self, path: str) -> bytes:
        """The content of one file."""
        return (self.path / path).read_bytes()

    def sha256(self, path: str) -> str:
        """The hash of one file."""
        return hash_file(self.path / path)


class Checkpoint(Folder):
    """A run's checkpoint that was not published: its model, and the manifests of the artifacts behind it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._places = {f"{FOLDER}/{name}/{MANIFEST}": folder / MANIFEST for name, folder in self._chain(path).items()}
        model = path / MODEL
        self._places |= {str(file.relative_to(model)): file for file in sorted(model.rglob("*")) if file.is_file()}

    def files(self) -> Mapping[str, str | None]:
        """Every file by the path that it would have on the Hub."""
        return dict.fromkeys(self._places)

    def read(self, path: str) -> bytes:
        """The content of one file."""
        return self._places[path].read_bytes()

    def sha256(self, path: str) -> str:
        """The hash of one file."""
        return hash_file(self._places[path])

    def _chain(self, path: Path) -> dict[str, Path]:
        """The artifact and those that it was made from, as far as they lie beside it."""
        found = {path.name: path}
        try:
            manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
        except ValidationError:
            return found  # who reads it says so
        for name in manifest.input_paths.values():
            beside = path.parent / name
            if name and beside.parent == path.parent and (beside / MANIFEST).is_file():
                found |= self._chain(beside)
        return found


def in_folder(path: Path) -> Place:
    """What lies in a folder: a checkpoint of a run, its stage's folder or the model in it, else a published model."""
    stage = path.parent if path.name == MODEL.rstrip("/") else path
    if (stage / MANIFEST).is_file() and (stage / MODEL).is_dir():
        return Checkpoint(stage.absolute())
    return Folder(path)


def verify(place: Place) -> Verdict:
    """Hash every file again and compare it with the manifests, and the manifests with each other.

    Raises ZephyrError where the place holds no manifests of ours.
    """
    known = place.files().items()
    files = {name: said or (place.sha256(name) if name.endswith(SAFETENSORS) else None) for name, said in known}
    manifests = dict(sorted(_manifests(place, files), key=lambda one: one[1].finished_at))
    checkpoint = _checkpoint(place, files, manifests)
    problems = [
        *_files(place, files, checkpoint),
        *_links(manifests),
        *(f"{name} is a pickle, which runs code when it is loaded" for name in files if looks_pickled(name)),
    ]
    return Verdict(
        place=place.name,
        checkpoint=checkpoint.plan.name,
        checked=len(model_entries(checkpoint)),
        problems=tuple(problems),
        unrepeatable=tuple(_unrepeatable(manifests)),
        chain=tuple(manifests),
    )


def _manifests(place: Place, files: Mapping[str, Any]) -> Iterator[tuple[str, Manifest]]:
    for path in files:
        parts = PurePosixPath(path).parts
        if len(parts) == 3 and parts[0] == FOLDER and parts[2] == MANIFEST:
            try:
                yield parts[1], Manifest.model_validate_json(place.read(path))
            except ValidationError:
                raise ZephyrError(
                    f"{path} of {place.name} is damaged or of another version of zephyrctl",
                    "verify it with the version that published it; its card names it",
                ) from None


def _checkpoint(place: Place, files: Mapping[str, str | None], manifests: Mapping[str, Manifest]) -> Manifest:
    """The manifest of what was published: of the trained models the one whose files these are."""
    trained = [one for one in manifests.values() if one.plan.stage in TRAINING]
    if not trained:
        raise ZephyrError(
            f"{place.name} holds no manifest of a checkpoint ({FOLDER}/*/{MANIFEST})",
            "give a model that `zephyrctl push` published: a folder, or ORG/NAME",
        )
    hashes = {sha256 for name, sha256 in files.items() if name.endswith(SAFETENSORS)}
    by_weights = [one for one in trained if hashes & {entry.sha256 for entry in one.files.values()}]
    return max(by_weights or trained, key=lambda one: one.finished_at)


def _files(place: Place, files: Mapping[str, str | None], checkpoint: Manifest) -> Iterator[str]:
    listed = model_entries(checkpoint)
    for name, entry in listed.items():
        if name == "README.md":
            continue
        if name not in files:
            yield f"{name} is missing"
        elif (found := files[name] or place.sha256(name)) != entry.sha256:
            yield f"{name} is another file than {checkpoint.plan.name} wrote: {found[:12]}, and not {entry.sha256[:12]}"
    for name in files:
        if name not in listed and name not in RENDERED and PurePosixPath(name).parts[0] != FOLDER:
            yield f"{name} is in no manifest"


def _links(manifests: Mapping[str, Manifest]) -> Iterator[str]:
    """Whether every manifest was made from the ones beside it, as their hashes say."""
    for name, manifest in manifests.items():
        for read, path in manifest.input_paths.items():
            source, said = manifests.get(path), manifest.plan.inputs.get(read)
            if source is not None and said is not None and source.content_hash != said:
                yield f"{name} read another {path} than the one whose manifest is here"


def _unrepeatable(manifests: Mapping[str, Manifest]) -> Iterator[str]:
    """What would keep somebody from making the same again, by what the manifests say."""
    for name, manifest in manifests.items():
        yield from (f"{name}: {reason}" for reason in _reasons(manifest, manifests))
    versions: dict[str, str] = {}
    for manifest in manifests.values():
        versions |= manifest.libraries
    here = library_versions()
    differ = [
        f"{name} {said} (here {here.get(name, 'none')})" for name, said in versions.items() if here.get(name) != said
    ]
    if differ:
        yield f"other versions than here: {', '.join(differ)}"
    ours = {manifest.plan.zephyrctl for manifest in manifests.values()} - {__version__}
    if ours:
        yield f"made with zephyrctl {', '.join(sorted(ours))}, and this is {__version__}"
    plugins = {name: said for manifest in manifests.values() for name, said in manifest.plugins.items()}
    yield from (f"the plugin {name} {said} is not installed here" for name, said in plugins.items() if not _has(name))


def _reasons(manifest: Manifest, manifests: Mapping[str, Manifest]) -> Iterator[str]:
    settings = flatten(manifest.plan.settings)
    for read, path in manifest.input_paths.items():
        if path not in manifests:
            yield f"{read} was read from {path or 'elsewhere'}, which is not published here"
    if any(key.split(".")[-1] == "kind" and value == "hub" for key, value in settings.items()):
        revision = next((value for key, value in settings.items() if key.endswith("source.revision")), None)
        if not revision:
            yield "its data set on the Hub is not pinned to a revision"
    if manifest.plan.settings.get("published") and not manifest.plan.settings.get("published_revision"):
        yield "its published ratings are not pinned to a revision"
    if calls := manifest.metrics.get("calls"):
        yield f"{calls:,} calls to teachers, who need not say the same again"
    if manifest.plan.stage in TRAINING and manifest.plan.settings.get("launch", {}).get("precision") == "bf16":
        yield "trained in bf16, where other hardware differs in the last digits"


def _has(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as one object."""
    told: dict[str, Any] = json.loads(json.dumps(verdict.__dict__))
    return {"is_whole": verdict.is_whole, **told}
