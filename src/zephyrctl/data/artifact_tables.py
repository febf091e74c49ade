"""How the tables of an artifact are written from columns: filtered, in groups of thousands of rows, a file a side."""

from collections import Counter, defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zephyrctl.data.cleaning_rules import Change, Dropped, Place
from zephyrctl.data.decontaminate.search import Hit
from zephyrctl.data.duplicates import Flags
from zephyrctl.data.shards import SCHEMA
from zephyrctl.records import Split
from zephyrctl.runs.artifacts import SPLITS
from zephyrctl.runs.parquet import ROWS_PER_GROUP, arrow_schema

SCHEMAS = {
    "dialogues": SCHEMA,
    "prompts": SCHEMA,
    "order/dialogues": arrow_schema(Place),
    "order/prompts": arrow_schema(Place),
    "changes": arrow_schema(Change),
    "dropped": arrow_schema(Dropped),
    "contamination": arrow_schema(Hit),
}
GROUPS_WAITING = 3
ALWAYS = ("dialogues", "prompts")
"""The tables that are there even without a row; a ledger without one is not."""


class Tables:
    """The tables of an artifact under way. Rows are held back until they fill a group: 4,096 of UltraChat are 25 MB.

    A thread a table compresses and writes, so that the next rows are read and filtered meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = dict.fromkeys(SCHEMAS, 0)
        self._open = ExitStack()
        self._writers: dict[tuple[str, Split], pq.ParquetWriter] = {}
        self._held: dict[tuple[str, Split], list[pa.RecordBatch]] = defaultdict(list)
        self._held_rows: Counter[tuple[str, Split]] = Counter()
        self._threads = {name: ThreadPoolExecutor(1) for name in SCHEMAS}  # started when they are needed
        self._pending: deque[Future[None]] = deque()

    def write(self, name: str, split: Split, batch: pa.RecordBatch) -> None:
        """Add rows to one side of a table."""
        if batch.num_rows:
            self._held[name, split].append(batch)
            self._held_rows[name, split] += batch.num_rows
            self.rows[name] += batch.num_rows
            if self._held_rows[name, split] >= ROWS_PER_GROUP:
                self._flush(name, split)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._open, ExitStack() as threads:
            for thread in self._threads.values():
                threads.enter_context(thread)
            if kind is None:
                for name, split in list(self._held):
                    self._flush(name, split)
                while self._pending:
                    self._pending.popleft().result()
                for name in ALWAYS:
                    for split in SPLITS:
                        self._writer(name, split)

    def _flush(self, name: str, split: Split) -> None:
        self._held_rows[name, split] = 0
        if held := self._held.pop((name, split), None):
            if len(self._pending) == GROUPS_WAITING:
                self._pending.popleft().result()
            self._pending.append(self._threads[name].submit(_write, self._writer(name, split), held))

    def _writer(self, name: str, split: Split) -> pq.ParquetWriter:
        if (name, split) not in self._writers:
            path = self.folder / name / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = pq.ParquetWriter(path, SCHEMAS[name], compression="zstd", use_dictionary=False)
            self._writers[name, split] = self._open.enter_context(writer)
        return self._writers[name, split]


def _write(writer: pq.ParquetWriter, held: list[pa.RecordBatch]) -> None:
    table = pa.Table.from_batches(held, writer.schema)
    writer.write_table(table, row_group_size=table.num_rows)


def filtered(batch: pa.RecordBatch, is_wanted: Flags) -> pa.RecordBatch:
    """The rows that are wanted."""
    return batch if is_wanted.all() else batch.filter(pa.array(is_wanted))


def first_turns(dialogues: pa.RecordBatch) -> pa.RecordBatch:
    """Dialogues as prompts: cut behind the first user turn, which a system turn may precede."""
    place = dialogues.schema.get_field_index("messages")
    messages = dialogues.column(place)
    starts = messages.offsets.to_numpy()[:-1]
    roles = messages.values.field("role")
    is_system = pc.equal(roles.take(pa.array(starts)), "system").to_numpy(zero_copy_only=False)
    lengths = 1 + is_system.astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    turns = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1], dtype=np.int32)
    cut = pa.ListArray.from_arrays(pa.array(offsets), messages.values.take(pa.array(turns)))
    return dialogues.set_column(place, dialogues.schema.field(place), cut.cast(messages.type))
