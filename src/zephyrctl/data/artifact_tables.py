"""Write the Parquet tables of an artifact from columns, one file for each table and split."""

from collections import Counter, defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zephyrctl.data.cleaning_rules import DroppedRow, InputRow, TurnChange
from zephyrctl.data.decontaminate.search import ContaminatedTurn
from zephyrctl.data.duplicates import Mask
from zephyrctl.data.shards import SCHEMA
from zephyrctl.records import Split
from zephyrctl.runs.artifacts import SPLITS
from zephyrctl.runs.parquet import ROWS_PER_GROUP, arrow_schema

SCHEMAS = {
    "dialogues": SCHEMA,
    "prompts": SCHEMA,
    "order/dialogues": arrow_schema(InputRow),
    "order/prompts": arrow_schema(InputRow),
    "changes": arrow_schema(TurnChange),
    "dropped": arrow_schema(DroppedRow),
    "contamination": arrow_schema(ContaminatedTurn),
}
GROUPS_WAITING = 3
"""Row groups that may wait to be written, over all tables."""
ALWAYS = ("dialogues", "prompts")
"""The tables that are written even without a row. An empty ledger is not written."""


class ArtifactTables:
    """The tables of an artifact while they are written.

    Rows wait until they fill a row group: 4,096 rows of UltraChat are 25 MB. Each table has a thread that compresses
    and writes, so that the next rows are read and filtered in the meantime.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = dict.fromkeys(SCHEMAS, 0)
        self._open = ExitStack()
        self._writers: dict[tuple[str, Split], pq.ParquetWriter] = {}
        self._waiting: dict[tuple[str, Split], list[pa.RecordBatch]] = defaultdict(list)
        self._waiting_rows: Counter[tuple[str, Split]] = Counter()
        self._threads = {name: ThreadPoolExecutor(1) for name in SCHEMAS}  # each starts with its first row group
        self._pending: deque[Future[None]] = deque()

    def write(self, name: str, split: Split, batch: pa.RecordBatch) -> None:
        """Add rows to one split of a table."""
        if batch.num_rows:
            self._waiting[name, split].append(batch)
            self._waiting_rows[name, split] += batch.num_rows
            self.rows[name] += batch.num_rows
            if self._waiting_rows[name, split] >= ROWS_PER_GROUP:
                self._flush(name, split)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._open, ExitStack() as threads:
            for thread in self._threads.values():
                threads.enter_context(thread)
            if kind is None:
                for name, split in list(self._waiting):
                    self._flush(name, split)
                while self._pending:
                    self._pending.popleft().result()
                for name in ALWAYS:
                    for split in SPLITS:
                        self._writer(name, split)

    def _flush(self, name: str, split: Split) -> None:
        self._waiting_rows[name, split] = 0
        if batches := self._waiting.pop((name, split), None):
            if len(self._pending) == GROUPS_WAITING:
                self._pending.popleft().result()
            self._pending.append(self._threads[name].submit(_write_group, self._writer(name, split), batches))

    def _writer(self, name: str, split: Split) -> pq.ParquetWriter:
        if (name, split) not in self._writers:
            path = self.folder / name / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = pq.ParquetWriter(path, SCHEMAS[name], compression="zstd", use_dictionary=False)
            self._writers[name, split] = self._open.enter_context(writer)
        return self._writers[name, split]


def _write_group(writer: pq.ParquetWriter, batches: list[pa.RecordBatch]) -> None:
    table = pa.Table.from_batches(batches, writer.schema)
    writer.write_table(table, row_group_size=table.num_rows)


def filter_rows(batch: pa.RecordBatch, is_wanted: Mask) -> pa.RecordBatch:
    """The wanted rows of a batch."""
    return batch if is_wanted.all() else batch.filter(pa.array(is_wanted))


def cut_to_first_turn(dialogues: pa.RecordBatch) -> pa.RecordBatch:
    """Dialogues as prompts: each is cut after the first user turn, which a system turn may precede.

    Turns are in one flat list: row i has turns[offsets[i] : offsets[i + 1]]. With a system turn in row 1 only::

        turns    U A U A | S U A | U A      offsets 0, 4, 7, 9
        wanted   U       | S U   | U        lengths 1, 2, 1
    """
    column = dialogues.schema.get_field_index("messages")
    messages = dialogues.column(column)
    starts = messages.offsets.to_numpy()[:-1]
    roles = messages.values.field("role")
    is_system = pc.equal(roles.take(pa.array(starts)), "system").to_numpy(zero_copy_only=False)
    lengths = 1 + is_system.astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    # The j-th wanted turn of row i is turn starts[i] + j of the flat list.
    turns = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1], dtype=np.int32)
    cut = pa.ListArray.from_arrays(pa.array(offsets), messages.values.take(pa.array(turns)))
    return dialogues.set_column(column, dialogues.schema.field(column), cut.cast(messages.type))
