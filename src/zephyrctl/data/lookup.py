"""Which rows of a run's tables belong to an id: found by the columns of ids alone, a row group in memory at a time."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

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
"""The tables of a stage that have rows of prompts."""
SPOKEN = ("dialogues", "prompts", "rated", "pairs")
"""Those among them that hold conversations."""
KEYS = ("id", "prompt_id", "question")
LISTED = 8
FEWEST_SHARED = 3
"""Characters that an id must share with the one asked for to be named in its place."""
SHORTEST = 8
"""Characters of an id by which errors name it, at least."""


@dataclass(frozen=True)
class Found:
    """One row of a table: its side, where it stands there, and what it says."""

    split: Split
    place: int
    row: Raw


def rows_of(artifact: Artifact, table: str, id: str) -> Iterator[Found]:
    """The rows of a table that belong to an id; none where the artifact has no such table."""
    for split in SPLITS:
        for file, group, start in _groups(artifact.table(table, split)):
            is_meant = pc.equal(_ids(file, group), id)
            if pc.any(is_meant).as_py():
                places = pc.indices_nonzero(is_meant).to_pylist()
                rows = file.read_row_group(group).filter(is_meant).to_pylist()
                yield from (Found(split, start + place, row) for place, row in zip(places, rows, strict=True))


def row_at(artifact: Artifact, table: str, found: Found) -> Raw | None:
    """The row that stands in another table of the same side where `found` stands in its own; None without one."""
    for file, group, start in _groups(artifact.table(table, found.split)):
        if start <= found.place < start + file.metadata.row_group(group).num_rows:
            row: Raw = file.read_row_group(group).slice(found.place - start, 1).to_pylist()[0]
            return row
    return None


def all_ids(artifact: Artifact) -> Iterator[pa.Array]:
    """The ids of every table of an artifact, some thousands at a time."""
    for table in TABLES.get(artifact.manifest.plan.stage, ()):
        for split in SPLITS:
            for file, group, _ in _groups(artifact.table(table, split)):
                yield _ids(file, group)


def whole_id(part: str, ids: Iterable[pa.Array]) -> str:
    """The one id that begins so. Raises ZephyrError where there is none, with the nearest, or several, with a list."""
    begun: set[str] = set()
    near: set[str] = set()
    for some in ids:
        begun.update(pc.unique(some.filter(pc.starts_with(some, part))).to_pylist())
        near = set(_neighbours(part, [*near, *_neighbours_among(part, some)]))
        if len(begun) > LISTED and part not in begun:
            break
    if part in begun or len(begun) == 1:
        return part if part in begun else begun.pop()
    raise _ambiguous(part, sorted(begun)) if begun else _unknown(part, sorted(near))


def ids_saying(artifact: Artifact, words: str) -> Iterator[tuple[str, str]]:
    """(id, user turn) of the conversations of an artifact in which the user says these words, in any case."""
    for table in TABLES.get(artifact.manifest.plan.stage, ()):
        if table not in SPOKEN and table != "dropped":
            continue
        for file, group, _ in chain.from_iterable(_groups(artifact.table(table, split)) for split in SPLITS):
            if table == "dropped":
                yield from _saying_of_dropped(file.read_row_group(group, columns=["content"]), words)
            else:
                yield from _saying(file.read_row_group(group, columns=["id", "messages"]), words)


def shortest(ids: Sequence[str], least: int = SHORTEST) -> list[str]:
    """The beginnings that tell some ids apart."""
    size = next((size for size in range(least, 64) if len({id[:size] for id in ids}) == len(set(ids))), 64)
    return [id[:size] for id in ids]


def _saying(table: pa.Table, words: str) -> Iterator[tuple[str, str]]:
    messages = table["messages"].combine_chunks()
    turns = pc.list_flatten(messages)
    says = pc.match_substring(pc.struct_field(turns, "content"), words, ignore_case=True)
    is_meant = pc.and_(pc.equal(pc.struct_field(turns, "role"), "user"), says)
    rows = pc.list_parent_indices(messages).filter(is_meant)
    texts = pc.struct_field(turns, "content").filter(is_meant)
    yield from zip(table["id"].take(rows).to_pylist(), texts.to_pylist(), strict=True)


def _saying_of_dropped(table: pa.Table, words: str) -> Iterator[tuple[str, str]]:
    """The same for rows that were left out, which lie there as JSON; a bad row has no id and is passed over."""
    escaped = json.dumps(words, ensure_ascii=False)[1:-1]
    for content in table["content"].filter(pc.match_substring(table["content"], escaped, ignore_case=True)).to_pylist():
        row = json.loads(content)
        turns = row["messages"] if row.get("id") else ()
        said = (turn["content"] for turn in turns if turn["role"] == "user")
        yield from ((row["id"], text) for text in said if words.casefold() in text.casefold())


def _groups(path: Path) -> Iterator[tuple[Any, int, int]]:
    """(file, number of the row group, number of its first row); nothing where there is no file."""
    if not path.is_file():
        return
    start = 0
    with readable(path), pq.ParquetFile(path) as file:
        for group in range(file.metadata.num_row_groups):
            yield file, group, start
            start += file.metadata.row_group(group).num_rows


def _ids(file: Any, group: int) -> pa.Array:
    key = next(key for key in KEYS if key in file.schema_arrow.names)
    return file.read_row_group(group, columns=[key])[key].combine_chunks()


def _neighbours_among(part: str, ids: pa.Array) -> Iterator[str]:
    """The ids before and behind a text in the order of the alphabet: nobody shares a longer beginning with it."""
    nearest: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = ((pc.less, pc.max), (pc.greater, pc.min))
    for is_there, end in nearest:
        if found := end(ids.filter(is_there(ids, part))).as_py():
            yield found


def _neighbours(part: str, ids: Iterable[str]) -> list[str]:
    alike = [(_shared(part, id), id) for id in ids]
    most = max((shared for shared, _ in alike), default=0)
    return [id for shared, id in alike if shared == most >= FEWEST_SHARED]


def _shared(one: str, other: str) -> int:
    """With how many equal characters two texts begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def _ambiguous(part: str, ids: Sequence[str]) -> ZephyrError:
    some = ", ".join(shortest(ids[:LISTED], max(SHORTEST, len(part) + 2)))
    many = f"{len(ids)} ids begin" if len(ids) <= LISTED else f"more than {LISTED} ids begin"
    return ZephyrError(f"{many} with {part!r}", f"give more of it: {some}{', ...' * (len(ids) > LISTED)}")


def _unknown(part: str, near: Sequence[str]) -> ZephyrError:
    nearest = f"did you mean {' or '.join(shortest(near, max(SHORTEST, len(part))))}? " if near else ""
    return ZephyrError(
        f"no row of this run has an id that begins with {part!r}",
        f"{nearest}find one by what its user says: --text 'some words'",
    )
