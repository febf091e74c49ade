"""List what each stage read, dropped and wrote, and what every artifact was made from."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from zephyrctl.publishing.number_format import ABSENT, anchor, duration, join_words, size, utc_minute
from zephyrctl.publishing.reported_run import TRAINING, ReportedRun
from zephyrctl.recipe.loading import flatten
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.manifest import Manifest
from zephyrctl.training.kinds import KINDS

READS = {
    "feedback": {"prompts"},
    "binarize": {"rated"},
    "eval": {"prompts"},
    **{name: set(kind.data) - {"chosen"} | {"pairs"} for name, kind in KINDS.items()},
}
"""The tables that a stage takes from its inputs; `chosen` answers are in the table of pairs."""


@dataclass(frozen=True)
class StageRows:
    """The rows that went into a stage, that it dropped and that it wrote."""

    name: str
    colour: str
    anchor: str
    rows_in: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    rows_out: tuple[str, ...]
    makes_checkpoint: bool


@dataclass(frozen=True)
class ArtifactInput:
    """What an artifact was made from; `is_stale` if that was rebuilt since."""

    name: str
    path: str
    hash: str
    anchor: str | None
    is_stale: bool


@dataclass(frozen=True)
class ArtifactFile:
    """A file of an artifact."""

    name: str
    sha256: str
    rows: str
    size: str


@dataclass(frozen=True)
class Provenance:
    """One artifact as the last section of the report shows it."""

    anchor: str
    name: str
    stage: str
    colour: str
    finished: str
    wall_time: str
    cost: str
    hash: str
    inputs: tuple[ArtifactInput, ...]
    files: tuple[ArtifactFile, ...]
    settings: tuple[tuple[str, str], ...]
    metrics: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    plugins: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def stage_rows(run: ReportedRun) -> Iterator[StageRows]:
    """One entry for each stage that read, dropped or wrote rows."""
    for artifact in run.artifacts:
        manifest, plan = artifact.manifest, artifact.manifest.plan
        rows_in, rows_out = tuple(_rows_in(run, manifest)), tuple(_row_counts(manifest))
        if rows_in or rows_out or manifest.dropped:
            causes = sorted(manifest.dropped.items(), key=lambda item: -item[1])
            dropped = tuple((cause, f"{count:,}") for cause, count in causes)
            is_training = plan.stage in TRAINING
            yield StageRows(plan.name, plan.stage, anchor(plan.name), rows_in, dropped, rows_out, is_training)


def provenance(run: ReportedRun) -> Iterator[Provenance]:
    """One entry for each artifact, in the order of the work."""
    for artifact in run.artifacts:
        yield _provenance(run, artifact)


def stale_artifacts(run: ReportedRun) -> Iterator[str]:
    """A sentence for each artifact whose inputs were rebuilt since."""
    for artifact in run.artifacts:
        stale = [input.path for input in _inputs(run, artifact.manifest) if input.is_stale]
        if stale:
            yield f"{artifact.manifest.plan.name} was made from an earlier {join_words(stale)}"


def _rows_in(run: ReportedRun, manifest: Manifest) -> Iterator[str]:
    tables = READS.get(manifest.plan.stage, set())
    sources = {path: source for path in manifest.input_paths.values() if (source := _source(run, path))}
    named = {source.manifest.plan.name: source.manifest for source in sources.values()}
    for manifest_read in named.values():
        yield from list(_row_counts(manifest_read, tables)) or _row_counts(manifest_read)


def _row_counts(manifest: Manifest, only: Iterable[str] = ()) -> Iterator[str]:
    """The row counts of an artifact's tables, such as `pairs: 900 train, 100 test`."""
    wanted, tables = set(only), dict[str, list[str]]()
    for file, entry in manifest.files.items():
        if entry.rows is not None:
            path = PurePosixPath(file)
            table, split = (str(path.parent), path.stem) if path.parent.name else (path.stem, "rows")
            tables.setdefault(table, []).append(f"{entry.rows:,} {split}")
    for table, counts in tables.items():
        if not wanted or table in wanted:
            yield f"{table}: {', '.join(reversed(counts))}"


def _provenance(run: ReportedRun, artifact: Artifact) -> Provenance:
    manifest, plan = artifact.manifest, artifact.manifest.plan
    return Provenance(
        anchor=anchor(plan.name),
        name=plan.name,
        stage=plan.stage,
        colour=plan.stage,
        finished=utc_minute(manifest.finished_at),
        wall_time=duration(manifest.seconds),
        cost=f"{manifest.cost_usd:,.2f} USD" if manifest.cost_usd else "",
        hash=manifest.content_hash,
        inputs=tuple(_inputs(run, manifest)),
        files=tuple(_files(manifest)),
        settings=_listing(plan.settings),
        metrics=_listing(manifest.metrics),
        versions=(("zephyrctl", plan.zephyrctl), *manifest.libraries.items()),
        plugins=tuple(manifest.plugins.items()),
        notes=tuple(manifest.notes),
    )


def _files(manifest: Manifest) -> Iterator[ArtifactFile]:
    for name, entry in manifest.files.items():
        rows = ABSENT if entry.rows is None else f"{entry.rows:,}"
        yield ArtifactFile(name, entry.sha256, rows, size(entry.bytes))


def _inputs(run: ReportedRun, manifest: Manifest) -> Iterator[ArtifactInput]:
    for name, content in manifest.plan.inputs.items():
        path = manifest.input_paths.get(name, "")
        source = _source(run, path)
        link = anchor(source.manifest.plan.name) if source else None
        # A stage may read a part of an artifact; only the hash of a whole artifact can be compared.
        is_stale = source is not None and path == source.manifest.plan.name and source.content_hash != content
        yield ArtifactInput(name, path, content, link, is_stale)


def _source(run: ReportedRun, path: str) -> Artifact | None:
    """The artifact of this run that an input path is in."""
    return run.named.get(path.partition("/")[0])


def _listing(values: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in flatten(values).items()
    )
