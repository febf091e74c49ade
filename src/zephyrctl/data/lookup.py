"""Find the rows of a run's tables by the beginning of their id, or by what the user says."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zephyrctl.errors import ZephyrError
from zephyrctl.records import Split
from zephyrctl.rows.files import Raw, readable
from zephyrctl.runs.artifacts import SPLITS, Artifact

TABLES = {
    "build": ("dialogues", "prompts", "changes", "dropped", "contamination"),
    "feedback": ("rated", "judgments", "failed"),
    "binarize": ("pairs",),
    "eval": ("answers",),
}
"""The tables of each stage whose rows belong to prompts."""
CONVERSATIONS = ("dialogues", "prompts", "rated", "pairs")
"""The tables that contain conversations."""
KEYS = ("id", "prompt_id", "question")
LISTED = 8
FEWEST_SHARED = 3
"""An error suggests an id if it shares at least so many characters with the one that was asked for."""
SHORTEST = 8
"""The least characters by which errors name an id."""


@dataclass(frozen=True)
class TableRow:
    """One row of a table, with its split and its position there."""

    split: Split
    position: int
    row: Raw


def rows_of(artifact: Artifact, table: str, id: str) -> Iterator[TableRow]:
    """The rows of a table that belong to an id; none if the artifact has no such table."""
    for split in SPLITS:
        for file, group, start in _groups(artifact.table(table, split)):
            is_meant = pc.equal(_ids(file, group), id)
            if pc.any(is_meant).as_py():
                positions = pc.indices_nonzero(is_meant).to_pylist()
                rows = file.read_row_group(group).filter(is_meant).to_pylist()
                yield from (
                    TableRow(split, start + position, row) for position, row in zip(positions, rows, strict=True)
                )


def row_at(artifact: Artifact, table: str, found: TableRow) -> Raw | None:
    """The row of another table with the same split and position; None if there is none."""
    for file, group, start in _groups(artifact.table(table, found.split)):
        if start <= found.position < start + file.metadata.row_group(group).num_rows:
            row: Raw = file.read_row_group(group).slice(found.position - start, 1).to_pylist()[0]
            return row
    return None


def all_ids(artifact: Artifact) -> Iterator[pa.Array]:
    """The ids of every table of an artifact, one row group at a time."""
    for table in TABLES.get(artifact.manifest.plan.stage, ()):
        for split in SPLITS:
            for file, group, _ in _groups(artifact.table(table, split)):
                yield _ids(file, group)


def whole_id(part: str, ids: Iterable[pa.Array]) -> str:
    """The one id that begins with `part`. Raises ZephyrError if there is none or several, and lists the nearest ids."""
    matching: set[str] = set()
    near: set[str] = set()
    for batch in ids:
        matching.update(pc.unique(batch.filter(pc.starts_with(batch, part))).to_pylist())
        near = set(_neighbours(part, [*near, *_neighbours_among(part, batch)]))
        if len(matching) > LISTED and part not in matching:
            break
    if part in matching or len(matching) == 1:
        return part if part in matching else matching.pop()
    raise _ambiguous(part, sorted(matching)) if matching else _unknown(part, sorted(near))


def find_user_words(artifact: Artifact, words: str) -> Iterator[tuple[str, str]]:
    """(id, user turn) of the conversations of an artifact in which the user says these words, ignoring case."""
    for table in TABLES.get(artifact.manifest.plan.stage, ()):
        if table not in CONVERSATIONS and table != "dropped":
            continue
        for file, group, _ in chain.from_iterable(_groups(artifact.table(table, split)) for split in SPLITS):
            if table == "dropped":
                yield from _find_in_dropped(file.read_row_group(group, columns=["content"]), words)
            else:
                yield from _find_in_messages(file.read_row_group(group, columns=["id", "messages"]), words)


def shorten(ids: Sequence[str], least: int = SHORTEST) -> list[str]:
    """The shortest beginnings that tell the ids apart."""
    size = next((size for size in range(least, 64) if len({id[:size] for id in ids}) == len(set(ids))), 64)
    return [id[:size] for id in ids]


def _find_in_messages(table: pa.Table, words: str) -> Iterator[tuple[str, str]]:
    messages = table["messages"].combine_chunks()
    turns = pc.list_flatten(messages)
    contains = pc.match_substring(pc.struct_field(turns, "content"), words, ignore_case=True)
    is_meant = pc.and_(pc.equal(pc.struct_field(turns, "role"), "user"), contains)
    rows = pc.list_parent_indices(messages).filter(is_meant)
    texts = pc.struct_field(turns, "content").filter(is_meant)
    yield from zip(table["id"].take(rows).to_pylist(), texts.to_pylist(), strict=True)


def _find_in_dropped(table: pa.Table, words: str) -> Iterator[tuple[str, str]]:
    """The same for dropped rows, which are stored as JSON. Bad rows have no id and are skipped."""
    escaped = json.dumps(words, ensure_ascii=False)[1:-1]
    for content in table["content"].filter(pc.match_substring(table["content"], escaped, ignore_case=True)).to_pylist():
        row = json.loads(content)
        turns = row["messages"] if row.get("id") else ()
        texts = (turn["content"] for turn in turns if turn["role"] == "user")
        yield from ((row["id"], text) for text in texts if words.casefold() in text.casefold())


def _groups(path: Path) -> Iterator[tuple[pq.ParquetFile, int, int]]:
    """(file, number of the row group, number of its first row) for every row group; nothing without a file."""
    if not path.is_file():
        return
    start = 0
    with readable(path), pq.ParquetFile(path) as file:
        for group in range(file.metadata.num_row_groups):
            yield file, group, start
            start += file.metadata.row_group(group).num_rows


def _ids(file: pq.ParquetFile, group: int) -> pa.Array:
    key = next(key for key in KEYS if key in file.schema_arrow.names)
    return file.read_row_group(group, columns=[key])[key].combine_chunks()


def _neighbours_among(part: str, ids: pa.Array) -> Iterator[str]:
    """The ids just before and after a text in sorted order: no other id shares a longer beginning with it."""
    sides = ((pc.less, pc.max), (pc.greater, pc.min))
    for is_on_side, nearest in sides:
        if id := nearest(ids.filter(is_on_side(ids, part))).as_py():
            yield id


def _neighbours(part: str, ids: Iterable[str]) -> list[str]:
    with_length = [(_shared_length(part, id), id) for id in ids]
    longest = max((length for length, _ in with_length), default=0)
    return [id for length, id in with_length if length == longest >= FEWEST_SHARED]


def _shared_length(text: str, other: str) -> int:
    """The length of the longest common beginning of two texts."""
    pairs = zip(text, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _ambiguous(part: str, ids: Sequence[str]) -> ZephyrError:
    listed = ", ".join(shorten(ids[:LISTED], max(SHORTEST, len(part) + 2)))
    many = f"{len(ids)} ids begin" if len(ids) <= LISTED else f"more than {LISTED} ids begin"
    return ZephyrError(f"{many} with {part!r}", f"give more characters: {listed}{', ...' * (len(ids) > LISTED)}")


def _unknown(part: str, near: Sequence[str]) -> ZephyrError:
    nearest = f"did you mean {' or '.join(shorten(near, max(SHORTEST, len(part))))}? " if near else ""
    return ZephyrError(
        f"no row of this run has an id that begins with {part!r}",
        f"{nearest}find one by what its user says: --text 'some words'",
    )
