"""An artifact, the folder of a finished stage, and a draft, the folder of a stage under way."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from zephyrctl.disk import lock, write_whole
from zephyrctl.records import Record, Split
from zephyrctl.runs.manifest import MANIFEST, SCRATCH, Manifest, Plan, describe_files, library_versions
from zephyrctl.runs.parquet import Row, RowWriter, read_parquet, write_parquet

if TYPE_CHECKING:
    from zephyrctl.runs.run import Run

COMPLETE = "complete"
"""The file that marks a training checkpoint as whole; workers write it last."""
SPLITS: tuple[Split, ...] = ("train", "test")


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
        """The rows of one split of a table, such as `pairs`; none if it has no such table."""
        yield from read_parquet(self.table(rows, split), record)

    def table(self, rows: str, split: Split) -> Path:
        """The Parquet file of one split."""
        return self.path / rows / f"{split}.parquet"

    def count(self, rows: str, split: Split) -> int:
        """The number of rows in a split."""
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
        """The number of dropped rows by cause."""
        self.notes: list[str] = []
        self.cost_usd = 0.0
        self.is_resumed = False
        self._started = time.monotonic()

    @property
    def scratch(self) -> Path:
        """A folder for work that does not belong to the artifact. It is kept for a resume and removed at the end."""
        path = self.path / SCRATCH
        path.mkdir(exist_ok=True)
        return path

    def has_work(self) -> bool:
        """True if an interrupted attempt left something to resume from: journalled rows or a whole checkpoint."""
        scratch = self.path / SCRATCH
        journals = (path.stat().st_size for path in scratch.glob("*.journal"))
        return any(journals) or any(scratch.glob(f"checkpoints/*/{COMPLETE}"))

    def write(self, rows: str, split: Split, records: Iterable[Record], record: type[Record]) -> int:
        """Write one split of a table as Parquet and return its row count."""
        path = self.path / rows / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_parquet(path, records, record)

    def writer(self, rows: str, split: Split, record: type[Record]) -> RowWriter:
        """A writer of one split, for rows that come one by one; use it in a `with`."""
        path = self.path / rows / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        return RowWriter(path, record)

    def drop(self, cause: str, rows: int = 1) -> None:
        """Count rows that are dropped for a cause."""
        if rows:
            self.dropped[cause] = self.dropped.get(cause, 0) + rows

    def finish(self) -> Artifact:
        """Hash the files, write the manifest last, and move the folder to its place in one rename.

        The scratch folder is removed after the manifest is written: if this process is killed while a large model is
        hashed, the training is not lost.
        """
        manifest = Manifest(
            plan=self.plan,
            input_paths=self.input_paths,
            libraries=library_versions(),
            plugins=self.plugins,
            files=describe_files(self.path),
            metrics=self.metrics,
            dropped=self.dropped,
            notes=self.notes,
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(self._seconds(), 3),
            cost_usd=self.cost_usd,
        )
        (self.path / MANIFEST).write_text(manifest.model_dump_json(indent=2))
        shutil.rmtree(self.path / SCRATCH, ignore_errors=True)
        for name in ("plan.json", "spent.json"):
            (self.path / name).unlink(missing_ok=True)
        return self._move_to_place(manifest)

    def _move_to_place(self, manifest: Manifest) -> Artifact:
        """The artifact in its final folder. `Run.artifact` completes this if it is cut between the two renames."""
        final = self.run.path / self.plan.name
        replaced = self.run.path / f".{self.plan.name}.replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            final.rename(replaced)
        self.path.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
        return Artifact(final, manifest)

    def _seconds(self) -> float:
        """Wall time of this attempt and of those that it resumes."""
        before = 0.0
        with contextlib.suppress(OSError, ValueError):  # missing, or cut short by a full disk
            before = float((self.path / "spent.json").read_text())
        return before + time.monotonic() - self._started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.path.is_dir() and (self.path / "plan.json").is_file():
            with contextlib.suppress(OSError):  # a full disk must not hide the error that is being raised
                write_whole(self.path / "spent.json", json.dumps(self._seconds()))
        self.close()

    def close(self) -> None:
        """Let other processes work on this artifact."""
        self._lock.close()
