"""Clean one chunk of the input: write its rows as columns, and note what other chunks and the ledgers must know.

Every process does this work. A chunk is read once, and a few hundred of its rows are in memory at a time.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from zephyrctl.data import cleaning_rules
from zephyrctl.data.chunks import RawChunk, RecordChunk
from zephyrctl.data.cleaning_rules import CleaningRules, DroppedRow, Kind, TurnChange
from zephyrctl.data.duplicates import KEY_BYTES, Mask, content_key, layout, sketch
from zephyrctl.data.word_hashes import Hashes, Positions
from zephyrctl.errors import BadRow
from zephyrctl.recipe.schema import Clean
from zephyrctl.records import Dialogue, Role, Split, prompt_id, split_of
from zephyrctl.rows.files import Raw, opened
from zephyrctl.rows.published_rows import RowFormats, row_formats
from zephyrctl.rows.turns import check_dialogue
from zephyrctl.runs.parquet import arrow_schema

ROWS_AT_ONCE = 256
"""Rows whose texts are in memory at once: 6 kB each in UltraChat."""
SCHEMA = arrow_schema(Dialogue)
SIDE = pa.field("test", pa.bool_())
NOTES = {
    "changes": arrow_schema(TurnChange).append(SIDE),
    "dropped": arrow_schema(DroppedRow).append(SIDE),
    "asked": pa.schema([("position", pa.int64()), ("text", pa.string())]),
}
"""The files beside a shard: both ledgers, and the user turns that `eval` may ask."""
KEY = f"S{KEY_BYTES}"
Keys = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class CleaningSettings:
    """The settings by which every chunk is cleaned, and the folder of the shards."""

    clean: Clean
    test_share: float
    skip_bad_rows: bool
    near: float | None
    folder: Path


@dataclass
class RowKeys:
    """What other chunks must know of the rows of one, as arrays with one entry for each row: some 80 bytes a row."""

    rows: Positions
    """The number of the row in the input."""
    is_test: Mask
    prompts: Keys
    """The first 16 bytes of the prompt's id."""
    contents: Keys
    """A hash of all turns: equal for exact duplicates."""
    bands: Hashes
    """(rows, bands): hashes of the MinHash signature, for near duplicates."""

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def join(cls, parts: Sequence["RowKeys"]) -> Self:
        """The keys of several chunks, one after another."""
        return cls(*(np.concatenate([getattr(part, entry.name) for part in parts]) for entry in fields(cls)))


def empty_keys(near: float | None, rows: int = 0) -> RowKeys:
    """The keys of no rows, or of `rows` rows with empty keys; without `near` there are no bands."""
    return RowKeys(
        rows=np.zeros(rows, np.int64),
        is_test=np.zeros(rows, np.bool_),
        prompts=np.zeros(rows, KEY),
        contents=np.zeros(rows, KEY),
        bands=np.zeros((rows, layout(near)[0] if near else 0), np.uint64),
    )


@dataclass
class Shard:
    """A cleaned chunk: the Arrow file of its rows, their keys, and counts of what was dropped and changed."""

    path: Path
    kind: Kind
    source: str
    split: Split | None
    bytes: int
    keys: RowKeys
    count: int = 0
    read: int = 0
    dropped: "Counter[str]" = field(default_factory=Counter)
    """Dropped rows by cause, as the manifest counts them."""
    rules: "Counter[str]" = field(default_factory=Counter)
    """Changed and dropped rows by rule."""

    def beside(self, name: str) -> Path:
        """The file of a ledger beside the rows."""
        return self.path.with_suffix(f".{name}.arrow")

    def remove(self) -> None:
        """Remove its files."""
        for path in (self.path, *map(self.beside, (*NOTES, "contamination"))):
            path.unlink(missing_ok=True)


@dataclass(slots=True)
class CleanRow:
    """A row after the rules have changed it, before it is written."""

    row: int
    id: str
    roles: list[str]
    texts: list[str]
    source: str
    origin: str
    is_test: bool

    def as_row(self) -> Raw:
        """The row in the form of the `dialogues` table, which `--input` reads."""
        turns = [{"role": role, "content": text} for role, text in zip(self.roles, self.texts, strict=True)]
        return {"id": self.id, "messages": turns, "source": self.source, "origin": self.origin}


class ShardCleaner:
    """Cleans one chunk into a shard."""

    def __init__(self, chunk: RawChunk | RecordChunk, settings: CleaningSettings) -> None:
        self.chunk = chunk
        self.settings = settings
        self.rules = CleaningRules(settings.clean)
        path = settings.folder / f"{chunk.kind}-{chunk.first_row:012}.arrow"
        self.near = settings.near if chunk.kind == "dialogues" else None
        self.shard = Shard(path, chunk.kind, chunk.source, chunk.split, chunk.bytes, empty_keys(self.near))
        self.notes: dict[str, list[Raw]] = {name: [] for name in NOTES}

    def clean(self) -> Shard:
        """The shard, with its files written. Raises BadRow at the first bad row, unless such rows are skipped."""
        rows = self._rows()
        keys: list[RowKeys] = []
        with ExitStack() as files:
            file = files.enter_context(ArrowFile(self.shard.path, SCHEMA))
            beside = {name: files.enter_context(ArrowFile(self.shard.beside(name), NOTES[name])) for name in NOTES}
            # Notes are written with the batch that caused them, so that memory does not grow with the dropped rows.
            while batch := list(islice(rows, ROWS_AT_ONCE)):
                if kept := [row for row in batch if self._is_kept(row)]:
                    self._note_asked(kept, sum(map(len, keys)))  # positions are those in the shard, of kept rows
                    file.write(_columns(kept))
                    keys.append(self._keys(kept))
                for name, notes in self.notes.items():
                    if notes:
                        beside[name].write(pa.RecordBatch.from_pylist(notes, NOTES[name]))
                        notes.clear()
        # The empty keys come first: they give the arrays their types and their width if no row is kept.
        self.shard.keys = RowKeys.join([self.shard.keys, *keys])
        self.shard.count = len(self.shard.keys)
        return self.shard

    def _rows(self) -> Iterator[CleanRow]:
        if isinstance(self.chunk, RecordChunk):
            return self._rows_of_records(self.chunk)
        return self._rows_of_input(self.chunk)

    def _rows_of_records(self, chunk: RecordChunk) -> Iterator[CleanRow]:
        for number, record in enumerate(chunk.records, chunk.first_row):
            self.shard.read += 1
            roles = [turn.role for turn in record.messages]
            texts = [turn.content for turn in record.messages]
            yield self._clean_row(number, roles, texts, record.source, record.origin)

    def _rows_of_input(self, chunk: RawChunk) -> Iterator[CleanRow]:
        formats = row_formats()
        for number, where, read in chunk.rows():
            self.shard.read += 1
            try:
                roles, texts, unanswered = _read_turns(opened(read), where, formats)
            except BadRow as error:
                if not self.settings.skip_bad_rows:
                    raise
                self.shard.dropped[error.cause] += 1
                content = error.line or json.dumps(read, default=str)
                self._note_drop(number, "", cleaning_rules.BAD_ROW, content, False, details=f"{where}: {error.cause}")
                continue
            row = self._clean_row(number, roles, texts, chunk.source, where)
            if unanswered is not None:
                self.shard.dropped[cleaning_rules.CUT] += 1
                self._note_change(row, len(texts), cleaning_rules.UNANSWERED, unanswered, None)
            yield row

    def _clean_row(
        self, number: int, roles: Sequence[Role], before: Sequence[str], source: str, origin: str
    ) -> CleanRow:
        # The id is the hash of the repaired prompt, and the split hangs on the id: equal prompts are on the same side.
        after = self.rules.repair(before)
        id = prompt_id(next((text for role, text in zip(roles, after, strict=True) if role == "user"), ""))
        side = self.chunk.split or split_of(id, self.settings.test_share)
        row = CleanRow(number, id, list(roles), list(after), source, origin, side == "test")
        if after is not before:
            for change in cleaning_rules.list_changes(cleaning_rules.TRUECASE, before, after):
                self._note_change(row, *change)
        return row

    def _is_kept(self, row: CleanRow) -> bool:
        opening = self.rules.find_opening(row.roles, row.texts)
        if not opening:
            return True
        rule, words = opening
        self.shard.dropped[f"assistant openings: {rule.removeprefix(cleaning_rules.OPENINGS)}"] += 1
        self._note_drop(row.row, row.id, rule, row_json(row.as_row()), row.is_test, details=words)
        return False

    def _note_change(self, row: CleanRow, turn: int, rule: str, before: str, after: str | None) -> None:
        self.shard.rules[rule] += 1
        change = {"kind": self.chunk.kind, "id": row.id, "row": row.row, "turn": turn, "rule": rule}
        self.notes["changes"].append({**change, "before": before, "after": after, "test": row.is_test})

    def _note_drop(self, row: int, id: str, rule: str, content: str, is_test: bool, details: str) -> None:
        self.shard.rules[rule] += 1
        dropped = {"kind": self.chunk.kind, "id": id, "row": row, "rule": rule, "content": content}
        self.notes["dropped"].append({**dropped, "like": "", "details": details, "test": is_test})

    def _note_asked(self, rows: Sequence[CleanRow], first: int) -> None:
        """Note what `eval` may ask: the first user turn of a test dialogue, every user turn of a test prompt."""
        for position, row in enumerate(rows, first):
            if row.is_test:
                turns = [text for role, text in zip(row.roles, row.texts, strict=True) if role == "user"]
                asked = turns if self.chunk.kind == "prompts" else turns[:1]
                self.notes["asked"] += [{"position": position, "text": text} for text in asked]

    def _keys(self, rows: Sequence[CleanRow]) -> RowKeys:
        bands = sketch([row.texts for row in rows], self.near) if self.near else empty_keys(None, len(rows)).bands
        # 16 of the 32 bytes of an id are enough: among 10^9 prompts, two share them with a probability of 10^-21.
        return RowKeys(
            rows=np.array([row.row for row in rows], np.int64),
            is_test=np.array([row.is_test for row in rows], np.bool_),
            prompts=np.array([bytes.fromhex(row.id[: 2 * KEY_BYTES]) for row in rows], KEY),
            contents=np.array([content_key(row.roles, row.texts) for row in rows], KEY),
            bands=bands,
        )


def clean_chunk(task: tuple[RawChunk | RecordChunk, CleaningSettings]) -> Shard:
    """Clean one chunk, in whichever process this is called."""
    return ShardCleaner(*task).clean()


def _read_turns(row: Raw, where: str, formats: RowFormats) -> tuple[list[Role], list[str], str | None]:
    """The roles and texts of a dialogue, and its last user turn if that was cut because it has no answer.

    Some of UltraChat's dialogues end on the user; the turns before are sound. Raises BadRow.
    """
    form = formats.dialogue_format(row, where)
    roles, texts = form.conversation(row, where)
    unanswered = None
    if form.may_end_on_user and len(roles) > 1 and roles[-1] == "user":
        roles.pop()
        unanswered = texts.pop()
    check_dialogue(roles, texts, where)
    return roles, texts, unanswered


def row_json(row: Raw) -> str:
    """A row of our own tables as one line of JSON."""
    return orjson.dumps(row).decode()


def read_batches(path: Path) -> Iterator[tuple[slice, pa.RecordBatch]]:
    """The batches of an Arrow file with the positions of their rows, one in memory at a time; none without a file."""
    if path.is_file():
        start = 0
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                yield slice(start, start + batch.num_rows), batch
                start += batch.num_rows


class ArrowFile:
    """An Arrow file that is created when the first batch is written."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema
        self._open = ExitStack()
        self._writer: pa.ipc.RecordBatchFileWriter | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Write a batch, uncompressed: LZ4 would halve the bytes on disk and take a tenth of the whole time."""
        if self._writer is None:
            sink = self._open.enter_context(pa.OSFile(str(self.path), "wb"))
            self._writer = self._open.enter_context(pa.ipc.new_file(sink, self.schema))
        self._writer.write_batch(batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _columns(rows: Sequence[CleanRow]) -> pa.RecordBatch:
    """Rows as columns. The turns of all rows are in one flat list: row i has turns[offsets[i] : offsets[i + 1]]."""
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row.texts) for row in rows], out=offsets[1:])
    roles = pa.array([role for row in rows for role in row.roles], pa.string())
    texts = pa.array([text for row in rows for text in row.texts], pa.string())
    # Arrow's own layout, so that no dict is made for each turn: UltraChat has 10 million turns.
    turns = pa.StructArray.from_arrays([roles, texts], fields=list(SCHEMA.field("messages").type.value_type))
    columns = [
        pa.array([row.id for row in rows], pa.string()),
        pa.ListArray.from_arrays(pa.array(offsets), turns).cast(SCHEMA.field("messages").type),
        pa.array([row.source for row in rows], pa.string()),
        pa.array([row.origin for row in rows], pa.string()),
    ]
    return pa.record_batch(columns, schema=SCHEMA)
