"""Where every number came from: what each stage read, dropped and wrote, and what every artifact was made of."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from zephyrctl.publishing.number_format import ABSENT, anchor, duration, listed, moment, size
from zephyrctl.publishing.subject import Subject
from zephyrctl.recipe.loading import flatten
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.manifest import Manifest

READS = {
    "feedback": {"prompts"},
    "binarize": {"rated"},
    "sft": {"dialogues", "pairs"},
    "dpo": {"pairs"},
    "eval": {"prompts"},
}
"""The tables that a stage takes from its inputs, where it has inputs with a table of that name."""


@dataclass(frozen=True)
class LossRow:
    """What went into a stage, what it dropped and what it wrote."""

    name: str
    tone: str
    anchor: str
    taken: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    written: tuple[str, ...]


@dataclass(frozen=True)
class Input:
    """What an artifact was made from; `is_stale` where that has been made anew since."""

    name: str
    path: str
    hash: str
    anchor: str | None
    is_stale: bool


@dataclass(frozen=True)
class Origin:
    """One artifact as the last section shows it."""

    anchor: str
    name: str
    stage: str
    tone: str
    finished: str
    seconds: str
    cost: str
    hash: str
    inputs: tuple[Input, ...]
    files: tuple[tuple[str, str, str, str], ...]
    settings: tuple[tuple[str, str], ...]
    metrics: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    plugins: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def loss_rows(subject: Subject) -> Iterator[LossRow]:
    """One row for each stage that read, dropped or wrote rows."""
    for artifact in subject.artifacts:
        manifest, plan = artifact.manifest, artifact.manifest.plan
        taken, written = tuple(_taken(subject, manifest)), tuple(_tables(manifest))
        if taken or written or manifest.dropped:
            dropped = sorted(manifest.dropped.items(), key=lambda item: -item[1])
            counts = tuple((cause, f"{count:,}") for cause, count in dropped)
            yield LossRow(plan.name, plan.stage, anchor(plan.name), taken, counts, written)


def origins(subject: Subject) -> Iterator[Origin]:
    """One entry for each artifact, in the order of the work."""
    for artifact in subject.artifacts:
        yield _origin(subject, artifact)


def stale(subject: Subject) -> Iterator[str]:
    """A sentence for each artifact whose inputs have been made anew since."""
    for artifact in subject.artifacts:
        names = [one.path for one in _inputs(subject, artifact.manifest) if one.is_stale]
        if names:
            yield f"{artifact.manifest.plan.name} was made from an earlier {listed(names)}"


def _taken(subject: Subject, manifest: Manifest) -> Iterator[str]:
    reads = READS.get(manifest.plan.stage, set())
    sources = {one.path: one for path in manifest.input_paths.values() if (one := _source(subject, path))}
    for artifact in sources.values():
        yield from list(_tables(artifact.manifest, reads)) or _tables(artifact.manifest)


def _tables(manifest: Manifest, only: Iterable[str] = ()) -> Iterator[str]:
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


def _origin(subject: Subject, artifact: Artifact) -> Origin:
    manifest, plan = artifact.manifest, artifact.manifest.plan
    return Origin(
        anchor=anchor(plan.name),
        name=plan.name,
        stage=plan.stage,
        tone=plan.stage,
        finished=moment(manifest.finished_at),
        seconds=duration(manifest.seconds),
        cost=f"{manifest.cost_usd:,.2f} USD" if manifest.cost_usd else "",
        hash=manifest.content_hash,
        inputs=tuple(_inputs(subject, manifest)),
        files=tuple(
            (name, entry.sha256, f"{entry.rows:,}" if entry.rows is not None else ABSENT, size(entry.bytes))
            for name, entry in manifest.files.items()
        ),
        settings=_listing(plan.settings),
        metrics=_listing(manifest.metrics),
        versions=(("zephyrctl", plan.zephyrctl), *manifest.libraries.items()),
        plugins=tuple(manifest.plugins.items()),
        notes=tuple(manifest.notes),
    )


def _inputs(subject: Subject, manifest: Manifest) -> Iterator[Input]:
    for name, content in manifest.plan.inputs.items():
        path = manifest.input_paths.get(name, "")
        source = _source(subject, path)
        place = anchor(source.manifest.plan.name) if source else None
        # A stage may be keyed by a part of an artifact; only the hash of a whole one can be compared.
        is_whole = source is not None and path == source.manifest.plan.name
        yield Input(name, path, content, place, is_whole and source is not None and source.content_hash != content)


def _source(subject: Subject, path: str) -> Artifact | None:
    """The artifact of this run that an input path lies in."""
    return subject.named.get(path.partition("/")[0])


def _listing(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in flatten(values).items()
    )
