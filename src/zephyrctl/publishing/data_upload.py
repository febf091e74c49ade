"""Collect what is published of a run's data: splits in the columns of the published sets, manifests and a card."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypedDict, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from zephyrctl import __version__, templates
from zephyrctl.contracts import ModelBase
from zephyrctl.errors import ZephyrError
from zephyrctl.publishing.publish_checks import failed_checks
from zephyrctl.publishing.secrets import secrets_in
from zephyrctl.publishing.stage_settings import StageSettings
from zephyrctl.publishing.uploads import FOLDER, FailedCheck, Upload, UploadFile, check_secrets, rendered
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Dialogue, Message, PreferencePair, Prompt, Record, first_user_turn
from zephyrctl.runs.artifacts import SPLITS, Artifact
from zephyrctl.runs.manifest import hash_file
from zephyrctl.runs.run import Run

TURNS = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
DIALOGUES = pa.schema([("prompt", pa.string()), ("prompt_id", pa.string()), ("messages", TURNS)])
PAIRS = pa.schema(
    [
        ("prompt", pa.string()),
        ("prompt_id", pa.string()),
        ("chosen", TURNS),
        ("rejected", TURNS),
        ("messages", TURNS),
        ("score_chosen", pa.float64()),
        ("score_rejected", pa.float64()),
    ]
)
"""The columns of ultrachat_200k and of ultrafeedback_binarized."""
ROWS_AT_ONCE = 1024
"""Rows in memory, and in one row group of a Parquet file."""


class PublishedTurn(TypedDict):
    """A message, with its keys in the order of the published sets."""

    content: str
    role: str


Published = TypeVar("Published", bound=Record)


class DialogueRow(TypedDict):
    """A row of `*_sft` and `*_gen`."""

    prompt: str
    prompt_id: str
    messages: list[PublishedTurn]


class PairRow(DialogueRow):
    """A row of `*_prefs`."""

    chosen: list[PublishedTurn]
    rejected: list[PublishedTurn]
    score_chosen: float | None
    score_rejected: float | None


def dialogue_row(dialogue: Dialogue | Prompt) -> DialogueRow:
    """A row as in ultrachat_200k; a prompt ends with a user turn."""
    return {
        "prompt": first_user_turn(dialogue.messages),
        "prompt_id": dialogue.id,
        "messages": _turns(dialogue.messages),
    }


def pair_row(pair: PreferencePair) -> PairRow:
    """A row as in ultrafeedback_binarized: `messages` repeats the chosen dialogue."""
    chosen, rejected = (
        _turns([*pair.messages, Message(role="assistant", content=text)]) for text in (pair.chosen, pair.rejected)
    )
    return {
        "prompt": first_user_turn(pair.messages),
        "prompt_id": pair.id,
        "chosen": chosen,
        "rejected": rejected,
        "messages": chosen,
        "score_chosen": pair.score_chosen,
        "score_rejected": pair.score_rejected,
    }


@dataclass(frozen=True)
class SplitForm(Generic[Published]):
    """How the splits of one name are made: which table of which artifact, and its columns."""

    name: str
    artifact: str
    table: str
    record: type[Published]
    columns: pa.Schema
    make_row: Callable[[Published], DialogueRow]

    def write(self, artifacts: Mapping[str, Artifact], folder: Path) -> "Iterator[WrittenSplit]":
        """Write each split that has rows."""
        artifact = artifacts.get(self.artifact)
        for split in SPLITS:
            if artifact and artifact.count(self.table, split):
                name = f"{split}_{self.name}"
                path = folder / "data" / f"{name}-00000-of-00001.parquet"
                rows, secrets = self._write_rows(path, artifact.read(self.table, split, self.record))
                failed = [FailedCheck("secrets", f"{name}: {secret}", "remove that row") for secret in secrets]
                file = UploadFile(f"data/{path.name}", path, path.stat().st_size, hash_file(path))
                yield WrittenSplit(name, rows, file, tuple(failed))

    def _write_rows(self, path: Path, records: Iterable[Published]) -> tuple[int, list[str]]:
        """Write the rows in groups; returns their count, and a sentence for each that contains a secret."""
        path.parent.mkdir(parents=True, exist_ok=True)
        count, secrets, group = 0, list[str](), list[DialogueRow]()
        with pq.ParquetWriter(path, self.columns, compression="zstd") as file:
            for record in records:
                row = self.make_row(record)
                secrets += secrets_in(f"row {row['prompt_id'][:8]}", record.model_dump_json())
                group.append(row)
                count += 1
                if len(group) == ROWS_AT_ONCE:
                    file.write_table(pa.Table.from_pylist(group, self.columns))
                    group.clear()
            if group:
                file.write_table(pa.Table.from_pylist(group, self.columns))
        return count, secrets


FORMS: tuple[SplitForm[Dialogue] | SplitForm[Prompt] | SplitForm[PreferencePair], ...] = (
    SplitForm("sft", "build", "dialogues", Dialogue, DIALOGUES, dialogue_row),
    SplitForm("gen", "build", "prompts", Prompt, DIALOGUES, dialogue_row),
    SplitForm("prefs", "binarize", "pairs", PreferencePair, PAIRS, pair_row),
)


@dataclass(frozen=True)
class WrittenSplit:
    """One split that was written for the upload, and what in it looks like a key."""

    name: str
    rows: int
    file: UploadFile
    failed_checks: tuple[FailedCheck, ...]


@dataclass(frozen=True)
class DataStage:
    """A stage in the card: the rows that it wrote by file, and those that it dropped by cause."""

    name: str
    source: str
    rows: Mapping[str, int]
    dropped: Mapping[str, int]


def plan_data(run: Run, recipe: Recipe, base: ModelBase, folder: Path) -> Upload:
    """Everything that publishing the run's data would send; the splits are written into `folder` first.

    Raises ZephyrError if the run has no data.
    """
    artifacts = {name: artifact for name in ("build", "feedback", "binarize") if (artifact := run.artifact(name))}
    if not artifacts:
        raise ZephyrError(f"{run.path} has no data to publish", f"zephyrctl data build --run {run.path}")
    splits = [split for form in FORMS for split in form.write(artifacts, folder)]
    manifests = [
        rendered(f"{FOLDER}/{name}/manifest.json", (artifact.path / "manifest.json").read_text())
        for name, artifact in artifacts.items()
    ]
    card = templates.render(
        "card/data.md.jinja",
        title=recipe.name,
        splits=splits,
        stages=[_stage(name, artifact) for name, artifact in artifacts.items()],
        notes=list(dict.fromkeys(note for artifact in artifacts.values() for note in artifact.manifest.notes)),
        zephyrctl=__version__,
    )
    files = (*(split.file for split in splits), *manifests, rendered("README.md", card))
    # The licence check is about the base model, of which a data set publishes nothing.
    failed = [check for check in failed_checks(recipe, base, [*artifacts.values()], [], []) if check.name != "licence"]
    failed += [check for split in splits for check in split.failed_checks]
    return Upload(
        title=f"the data of {recipe.name}",
        files=tuple(sorted(files, key=lambda file: file.path)),
        notes=(),
        failed_checks=(*failed, *check_secrets(files)),
        card=card,
        repo_type="dataset",
    )


def _stage(name: str, artifact: Artifact) -> DataStage:
    manifest = artifact.manifest
    rows = {file: entry.rows for file, entry in manifest.files.items() if entry.rows}
    return DataStage(name, _source(StageSettings.of(manifest.plan)), rows, manifest.dropped)


def _source(settings: StageSettings) -> str:
    """Where the rows of a stage came from; empty for a stage that only selects rows."""
    for name, revision in settings.data_sets():
        return f"`{name}`{f' at `{revision}`' if revision else ', no revision was pinned'}"
    if settings.source.kind == "files":
        return "files of their own"
    return f"made by `{settings.source.kind}`" if settings.source.kind else ""


def _turns(messages: Iterable[Message]) -> list[PublishedTurn]:
    return [{"content": message.content, "role": message.role} for message in messages]
