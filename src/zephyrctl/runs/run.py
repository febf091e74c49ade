"""A run is a folder, a finished stage an artifact in it: the only reader and writer of both.

An artifact appears whole or not at all. Work happens in `.<name>.unfinished/`; its files are hashed, `manifest.json` is
written last, and the folder is renamed. A draft that was interrupted resumes where its inputs and settings still match.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from zephyrctl import __version__
from zephyrctl.disk import lock, write_whole
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe.loading import flatten
from zephyrctl.records import Record, Split

ROWS_A_GROUP = 4096
ROWS_AT_ONCE = 256
"""Rows that are read at once: of 4,096 rated prompts, Python's garbage collector took four fifths of the time."""
SCRATCH = ".scratch"
COMPLETE = "complete"
"""The file that marks a training checkpoint as whole; workers write it last."""
SPLITS: tuple[Split, ...] = ("train", "test")
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

Row = TypeVar("Row", bound=Record)
Hashed = TypeVar("Hashed")


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(extra="forbid")

    sha256: str
    bytes: int = Field(ge=0)
    rows: int | None = Field(default=None, description="rows, for Parquet files")


class Plan(BaseModel):
    """What a stage is about to do: the same plan gives the same artifact and is not run twice."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="folder of the artifact in the run")
    stage: str = Field(description="build, feedback, binarize, sft, dpo, eval or push")
    settings: dict[str, Any] = Field(description="resolved settings that the result depends on")
    inputs: dict[str, str] = Field(description="input: content hash")
    zephyrctl: str = __version__

    def changes(self, other: "Plan") -> list[str]:
        """What differs from another plan, as `key: old -> new` lines."""
        old = {**flatten(other.settings), **_prefixed(other.inputs), "zephyrctl": other.zephyrctl}
        new = {**flatten(self.settings), **_prefixed(self.inputs), "zephyrctl": self.zephyrctl}
        keys = [*new, *(key for key in old if key not in new)]
        return [
            f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}" for key in keys if old.get(key) != new.get(key)
        ]


class Manifest(BaseModel):
    """What an artifact is, where it came from, and what was lost on the way."""

    model_config = ConfigDict(extra="forbid")

    plan: Plan
    input_paths: dict[str, str] = Field(description="input: where it lay")
    libraries: dict[str, str] = Field(description="library: version")
    plugins: dict[str, str] = Field(default_factory=dict, description="installed plugin package: version")
    files: dict[str, FileEntry]
    metrics: dict[str, Any] = Field(default_factory=dict)
    dropped: dict[str, int] = Field(
        default_factory=dict,
        validation_alias=AliasChoices("dropped", "losses"),  # older runs say `losses`
        description="cause: dropped rows",
    )
    notes: list[str] = Field(default_factory=list, description="what a reader of the figures must know")
    finished_at: str
    seconds: float = Field(ge=0, description="wall time, summed over resumed attempts")
    cost_usd: float = Field(default=0.0, ge=0)

    @property
    def content_hash(self) -> str:
        """The hash of the artifact's files: what later stages are keyed by."""
        return digest({name: entry.sha256 for name, entry in self.files.items()})


class Artifact:
    """A finished stage: its folder and its manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def content_hash(self) -> str:
        """The hash of its files."""
        return self.manifest.content_hash

    def read(self, rows: str, split: Split, record: type[Row]) -> Iterator[Row]:
        """The rows of one split of `rows`; nothing where there are none."""
        yield from read_parquet(self.table(rows, split), record)

    def table(self, rows: str, split: Split) -> Path:
        """The Parquet file of one split."""
        return self.path / rows / f"{split}.parquet"

    def count(self, rows: str, split: Split) -> int:
        """How many rows a split has."""
        entry = self.manifest.files.get(f"{rows}/{split}.parquet")
        return entry.rows or 0 if entry else 0


class Draft:
    """A stage under way, in `.<name>.unfinished/`; `finish` makes it an artifact."""

    def __init__(
        self, run: "Run", plan: Plan, input_paths: Mapping[str, Path | str], plugins: Mapping[str, str]
    ) -> None:
        self.run = run
        self.plan = plan
        self._lock = lock(run.path / f".{plan.name}.lock", f"is working on {plan.name!r}")
        self.path = run.path / f".{plan.name}.unfinished"
        self.input_paths = {name: run.relative(path) for name, path in input_paths.items()}
        self.plugins = dict(plugins)
        self.metrics: dict[str, Any] = {}
        self.dropped: dict[str, int] = {}
        self.notes: list[str] = []
        self.cost_usd = 0.0
        self.is_resumed = False
        self._began = time.monotonic()

    @property
    def scratch(self) -> Path:
        """A folder for work that does not belong to the artifact; kept for a resume, gone when it finishes."""
        path = self.path / SCRATCH
        path.mkdir(exist_ok=True)
        return path

    def holds_work(self) -> bool:
        """True where an interrupted attempt left something to go on from: journalled rows or a whole checkpoint."""
        scratch = self.path / SCRATCH
        journals = (path.stat().st_size for path in scratch.glob("*.journal"))
        return any(journals) or any(scratch.glob(f"checkpoints/*/{COMPLETE}"))

    def write(self, rows: str, split: Split, records: Iterable[Record], record: type[Record]) -> int:
        """Write one split as Parquet and return its row count."""
        path = self.path / rows / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_parquet(path, records, record)

    def writer(self, rows: str, split: Split, record: type[Record]) -> "RowWriter":
        """A writer of one split, for rows that come one at a time; use it in a `with`."""
        path = self.path / rows / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        return RowWriter(path, record)

    def drop(self, cause: str, rows: int = 1) -> None:
        """Count rows that were dropped for a cause."""
        if rows:
            self.dropped[cause] = self.dropped.get(cause, 0) + rows

    def finish(self) -> Artifact:
        """Hash the files, write the manifest last, and put the artifact in its place in one rename.

        The scratch goes after the manifest is written: a kill while a large model is hashed costs no training.
        """
        manifest = Manifest(
            plan=self.plan,
            input_paths=self.input_paths,
            libraries=library_versions(),
            plugins=self.plugins,
            files=_side_by_side(_entry, self.path),
            metrics=self.metrics,
            dropped=self.dropped,
            notes=self.notes,
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(self._spent(), 3),
            cost_usd=self.cost_usd,
        )
        (self.path / "manifest.json").write_text(manifest.model_dump_json(indent=2))
        shutil.rmtree(self.path / SCRATCH, ignore_errors=True)
        for own in ("plan.json", "spent.json"):
            (self.path / own).unlink(missing_ok=True)
        return self._put_in_place(manifest)

    def _put_in_place(self, manifest: Manifest) -> Artifact:
        place = self.run.path / self.plan.name
        replaced = self.run.path / f".{self.plan.name}.replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if place.exists():
            place.rename(replaced)
        self.path.rename(place)
        shutil.rmtree(replaced, ignore_errors=True)
        return Artifact(place, manifest)

    def _spent(self) -> float:
        before = 0.0
        with contextlib.suppress(OSError, ValueError):  # absent, or cut short by a full disk
            before = float((self.path / "spent.json").read_text())
        return before + time.monotonic() - self._began

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.path.is_dir() and (self.path / "plan.json").is_file():
            with contextlib.suppress(OSError):  # a full disk must not hide the error that is on its way
                write_whole(self.path / "spent.json", json.dumps(self._spent()))
        self.close()

    def close(self) -> None:
        """Let others work on this artifact."""
        self._lock.close()


class Run:
    """A run's folder: finished artifacts by name, and drafts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def artifact(self, name: str) -> Artifact | None:
        """The finished artifact of that name. Raises ZephyrError where its manifest is damaged."""
        self._recover(name)
        manifest = self.path / name / "manifest.json"
        if not manifest.is_file():
            return None
        try:
            return Artifact(self.path / name, Manifest.model_validate_json(manifest.read_bytes()))
        except ValidationError:
            raise ZephyrError(
                f"{manifest} is damaged or of another version of zephyrctl",
                f"remove {self.path / name} and run it again",
            ) from None

    def require(self, name: str, command: str) -> Artifact:
        """The finished artifact, or the error that names the command which makes it."""
        if artifact := self.artifact(name):
            return artifact
        raise ZephyrError(f"{self.path} has no finished {name!r}", f"{command} --run {self.path}")

    def artifacts(self) -> list[Artifact]:
        """Every finished artifact, oldest first."""
        folders = {path.parent.name for path in self.path.glob("*/manifest.json")}
        names = sorted(name for name in folders if not name.startswith("."))  # no drafts
        found = [artifact for name in names if (artifact := self.artifact(name))]
        return sorted(found, key=lambda artifact: artifact.manifest.finished_at)

    def unchanged(self, plan: Plan) -> Artifact | None:
        """The finished artifact, where it was made by this very plan."""
        artifact = self.artifact(plan.name)
        return artifact if artifact and artifact.manifest.plan == plan else None

    def draft(
        self,
        plan: Plan,
        input_paths: Mapping[str, Path | str],
        plugins: Mapping[str, str],
        fresh: bool = False,
    ) -> Draft:
        """A draft for the plan: a new one, or the interrupted one where its plan is the same.

        Raises ZephyrError where an unfinished draft has another plan and `fresh` does not discard it.
        """
        draft = Draft(self, plan, input_paths, plugins)
        try:
            self._begin(draft, fresh)
        except BaseException:
            draft.close()
            raise
        return draft

    def relative(self, path: Path | str) -> str:
        """A path as manifests name it: from the run's folder where it lies inside, so that a run can be moved."""
        if isinstance(path, Path) and path.is_relative_to(self.path):
            return str(path.relative_to(self.path))
        return str(path)

    def _begin(self, draft: Draft, fresh: bool) -> None:
        unfinished = draft.path / "plan.json"
        if draft.path.exists() and (fresh or not draft.holds_work()):
            shutil.rmtree(draft.path)
        if unfinished.is_file():
            self._check_same(draft, Plan.model_validate_json(unfinished.read_bytes()))
            draft.is_resumed = True
        else:
            shutil.rmtree(draft.path, ignore_errors=True)
            draft.path.mkdir(parents=True)
            write_whole(unfinished, draft.plan.model_dump_json(indent=2))

    def _check_same(self, draft: Draft, old: Plan) -> None:
        if differences := draft.plan.changes(old):
            raise ZephyrError(
                f"{draft.path} was begun with other settings or inputs ({'; '.join(differences[:3])})",
                "give --fresh to discard what was begun, or go back to the old settings to resume it",
            )

    def _recover(self, name: str) -> None:
        """Undo a replacement that was cut between its two renames."""
        replaced = self.path / f".{name}.replaced"
        if replaced.is_dir() and not (self.path / name).exists():
            # Who holds the lock is between the two renames right now, and needs no help.
            with (
                contextlib.suppress(ZephyrError, FileNotFoundError),
                lock(self.path / f".{name}.lock", f"is working on {name!r}"),
            ):
                replaced.rename(self.path / name)


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(path: Path) -> str:
    """The hash of every file of a folder, by relative name."""
    return digest(_side_by_side(hash_file, path))


@cache
def library_versions() -> dict[str, str]:
    """The versions of the libraries that results depend on; read from metadata, nothing is imported."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


class RowWriter:
    """A Parquet file to which records are added one at a time; they are written a group at a time."""

    def __init__(self, path: Path, record: type[Record]) -> None:
        self.rows = 0
        self._schema = arrow_schema(record)
        self._group: list[Record] = []
        # texts seldom repeat: a dictionary of them doubles the time and makes no file smaller
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=False)

    def add(self, row: Record) -> None:
        """Take one row; every row is written when the writer is closed, or the call raises."""
        self._group.append(row)
        self.rows += 1
        if len(self._group) == ROWS_A_GROUP:
            self._write()

    def add_table(self, table: pa.Table) -> None:
        """Take rows that are columns already, behind those taken before."""
        self._write()
        self.rows += table.num_rows
        if table.num_rows:
            self._file.write_table(table)

    def _write(self) -> None:
        if self._group:
            self._file.write_table(as_table(self._group, self._schema))
            self._group = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._write()
        finally:
            self._file.close()


def write_parquet(path: Path, records: Iterable[Record], record: type[Record]) -> int:
    """Stream records into one Parquet file, a group at a time; every row is written or the call raises."""
    with RowWriter(path, record) as writer:
        for row in records:
            writer.add(row)
    return writer.rows


def read_parquet(path: Path, record: type[Row]) -> Iterator[Row]:
    """The records of a Parquet file in order; nothing where the file is absent."""
    for batch in read_columns(path):
        for row in batch.to_pylist():
            yield record.model_validate(row)


def read_columns(
    path: Path, only: Collection[str] = (), groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, or of some of its row groups, as columns; nothing where the file is absent.

    Some rows come at a time. Where `only` names fields, however deep, no other column is read.
    """
    if not path.is_file():
        return
    with pq.ParquetFile(path) as file:
        leaves = [file.schema.column(number).path for number in range(len(file.schema))]
        columns = [leaf for leaf in leaves if not only or leaf.rpartition(".")[2] in only]
        yield from file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=columns)


def count_groups(path: Path) -> int:
    """How many row groups a Parquet file has; none where it is absent."""
    return pq.ParquetFile(path).num_row_groups if path.is_file() else 0


def as_table(records: Iterable[Record], schema: pa.Schema) -> pa.Table:
    """Records as columns."""
    return pa.Table.from_pylist([record.model_dump() for record in records], schema=schema)


def arrow_schema(record: type[BaseModel]) -> pa.Schema:
    """The Arrow schema of a record, from its annotations."""
    return pa.schema([pa.field(name, _arrow_type(field.annotation)) for name, field in record.model_fields.items()])


def _arrow_type(annotation: Any) -> pa.DataType:
    arguments = [argument for argument in getattr(annotation, "__args__", ()) if argument is not type(None)]
    origin = getattr(annotation, "__origin__", None)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.items()
        return pa.struct([pa.field(name, _arrow_type(field.annotation)) for name, field in fields])
    if origin is list:
        return pa.list_(_arrow_type(arguments[0]))
    scalars: dict[Any, pa.DataType] = {float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
    return scalars.get(arguments[0] if arguments else annotation, pa.string())


def _files(folder: Path) -> list[tuple[str, Path]]:
    own = {"manifest.json", "plan.json", "spent.json", "plan.json.part", "spent.json.part", SCRATCH}
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = [(path.relative_to(folder), path) for path in paths]
    return [(str(name), path) for name, path in named if name.parts[0] not in own]


def _side_by_side(hashed: Callable[[Path], Hashed], folder: Path) -> dict[str, Hashed]:
    """The files of a folder by name, hashed in threads: hashing lets go of Python's lock."""
    found = dict(_files(folder))
    with ThreadPoolExecutor() as threads:
        return dict(zip(found, threads.map(hashed, found.values()), strict=True))


def _entry(path: Path) -> FileEntry:
    rows = pq.ParquetFile(path).metadata.num_rows if path.suffix == ".parquet" else None
    return FileEntry(sha256=hash_file(path), bytes=path.stat().st_size, rows=rows)


def _prefixed(inputs: Mapping[str, str]) -> dict[str, str]:
    return {f"input {name}": value for name, value in inputs.items()}


def _short(value: Any) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
