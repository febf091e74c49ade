"""What is published of a run's data: its splits in the published sets' own columns, manifests, and a card."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zephyrctl import __version__, templates
from zephyrctl.contracts import ModelBase
from zephyrctl.errors import ZephyrError
from zephyrctl.publishing.publish_checks import objections
from zephyrctl.publishing.secrets import secrets_in
from zephyrctl.publishing.uploads import FOLDER, Objection, Upload, UploadFile, rendered, secrets_of
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Dialogue, Message, PreferencePair, Prompt, Record
from zephyrctl.runs.artifacts import SPLITS, Artifact
from zephyrctl.runs.manifest import hash_file
from zephyrctl.runs.run import Run

Row = dict[str, Any]
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


def dialogue_row(dialogue: Dialogue | Prompt) -> Row:
    """As in ultrachat_200k; a prompt ends on the user."""
    return {"prompt": _first(dialogue.messages), "prompt_id": dialogue.id, "messages": _turns(dialogue.messages)}


def pair_row(pair: PreferencePair) -> Row:
    """As in ultrafeedback_binarized: `messages` is what was chosen."""
    chosen, rejected = (
        _turns([*pair.messages, Message(role="assistant", content=text)]) for text in (pair.chosen, pair.rejected)
    )
    return {
        "prompt": _first(pair.messages),
        "prompt_id": pair.id,
        "chosen": chosen,
        "rejected": rejected,
        "messages": chosen,
        "score_chosen": pair.score_chosen,
        "score_rejected": pair.score_rejected,
    }


KINDS: dict[str, tuple[str, str, type[Record], pa.Schema, Callable[[Any], Row]]] = {
    "sft": ("build", "dialogues", Dialogue, DIALOGUES, dialogue_row),
    "gen": ("build", "prompts", Prompt, DIALOGUES, dialogue_row),
    "prefs": ("binarize", "pairs", PreferencePair, PAIRS, pair_row),
}
"""End of a split's name: artifact, table, record, columns, row."""


def plan_data(run: Run, recipe: Recipe, base: ModelBase, folder: Path) -> Upload:
    """Everything that publishing the run's data would send; the splits are written into `folder` first.

    Raises ZephyrError where the run has no data yet.
    """
    artifacts = {name: artifact for name in ("build", "feedback", "binarize") if (artifact := run.artifact(name))}
    if not artifacts:
        raise ZephyrError(f"{run.path} has no data to publish", f"zephyrctl data build --run {run.path}")
    splits = list(_splits(artifacts, folder))
    manifests = [
        rendered(f"{FOLDER}/{name}/manifest.json", (one.path / "manifest.json").read_text())
        for name, one in artifacts.items()
    ]
    card = templates.render(
        "card/data.md.jinja",
        title=recipe.name,
        splits=[{"name": name, "rows": rows, "bytes": file.bytes, "path": file.path} for name, rows, file, _ in splits],
        sources=[_source(one) for one in artifacts.values()],
        stages=[_stage(name, one) for name, one in artifacts.items()],
        notes=list(dict.fromkeys(note for one in artifacts.values() for note in one.manifest.notes)),
        zephyrctl=__version__,
    )
    files = (*(file for _, _, file, _ in splits), *manifests, rendered("README.md", card))
    against = [one for one in objections(recipe, base, list(artifacts.values()), [], []) if one.name != "licence"]
    found = [objection for _, _, _, objections_of in splits for objection in objections_of]
    return Upload(
        title=f"the data of {recipe.name}",
        files=tuple(sorted(files, key=lambda file: file.path)),
        notes=(),
        objections=(*against, *found, *secrets_of(files)),
        card=card,
        repo_type="dataset",
    )


def _splits(artifacts: dict[str, Artifact], folder: Path) -> Iterator[tuple[str, int, UploadFile, list[Objection]]]:
    """Name, rows and file of every split that has rows, and what in it looks like a key."""
    for kind, (stage, table, record, schema, row) in KINDS.items():
        for split in SPLITS:
            if stage in artifacts and artifacts[stage].count(table, split):
                name = f"{split}_{kind}"
                path = folder / "data" / f"{name}-00000-of-00001.parquet"
                rows, secrets = _write(path, artifacts[stage].read(table, split, record), schema, row)
                file = UploadFile(f"data/{path.name}", path, path.stat().st_size, hash_file(path))
                yield (
                    name,
                    rows,
                    file,
                    [Objection("secrets", f"{name}: {one}", "leave that row out") for one in secrets],
                )


def _write(
    path: Path, records: Iterator[Record], schema: pa.Schema, make: Callable[[Any], Row]
) -> tuple[int, list[str]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, secrets, group = 0, list[str](), list[Row]()
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for record in records:
            row = make(record)
            secrets += secrets_in(f"row {row['prompt_id'][:8]}", record.model_dump_json())
            group.append(row)
            count += 1
            if len(group) == ROWS_AT_ONCE:
                file.write_table(pa.Table.from_pylist(group, schema))
                group.clear()
        if group:
            file.write_table(pa.Table.from_pylist(group, schema))
    return count, secrets


def _source(artifact: Artifact) -> str:
    settings = artifact.manifest.plan.settings
    source = settings.get("source") or {}
    if name := source.get("dataset") or settings.get("published"):
        revision = source.get("revision") or settings.get("published_revision")
        return f"`{name}`{f' at `{revision}`' if revision else ', no revision was pinned'}"
    if source.get("kind") == "files":
        return "files of their own"
    return f"made by `{source.get('kind')}`" if source else ""


def _stage(name: str, artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    rows = {file: entry.rows for file, entry in manifest.files.items() if entry.rows}
    return {"name": name, "rows": rows, "dropped": manifest.dropped}


def _first(messages: list[Message]) -> str:
    return next((message.content for message in messages if message.role == "user"), "")


def _turns(messages: list[Message]) -> list[dict[str, str]]:
    return [{"content": message.content, "role": message.role} for message in messages]
