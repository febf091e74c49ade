"""Read and write records as Parquet files, with a schema that follows from the record's annotations."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Self, TypeVar, Union, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from zephyrctl.records import Record

ROWS_PER_GROUP = 4096
ROWS_PER_READ = 256
"""Rows that are read at once. With 4,096 rated prompts, Python's garbage collector took four fifths of the time."""

Row = TypeVar("Row", bound=Record)


class RowWriter:
    """A Parquet file to which records are added one by one; they are written a row group at a time."""

    def __init__(self, path: Path, record: type[Record]) -> None:
        self.rows = 0
        self._schema = arrow_schema(record)
        self._group: list[Record] = []
        # Texts seldom repeat: a dictionary of them doubles the time and makes no file smaller.
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=False)

    def add(self, row: Record) -> None:
        """Take one row. Every row is written when the writer is closed, or the call raises."""
        self._group.append(row)
        self.rows += 1
        if len(self._group) == ROWS_PER_GROUP:
            self._write()

    def add_table(self, table: pa.Table) -> None:
        """Take rows that are columns already; they follow those taken before."""
        self._write()
        self.rows += table.num_rows
        if table.num_rows:
            self._file.write_table(table)

    def _write(self) -> None:
        if self._group:
            self._file.write_table(as_table(self._group, self._schema))
            self._group = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._write()
        finally:
            self._file.close()


def write_parquet(path: Path, records: Iterable[Record], record: type[Record]) -> int:
    """Stream records into one Parquet file and return their number. Every row is written, or the call raises."""
    with RowWriter(path, record) as writer:
        for row in records:
            writer.add(row)
    return writer.rows


def read_parquet(path: Path, record: type[Row]) -> Iterator[Row]:
    """The records of a Parquet file in order; none if the file is missing."""
    for batch in read_columns(path):
        for row in batch.to_pylist():
            yield record.model_validate(row)


def read_columns(
    path: Path, only: Collection[str] = (), groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, or of some of its row groups, in batches of columns; none if the file is missing.

    If `only` names fields, at whatever depth, no other column is read.
    """
    if not path.is_file():
        return
    with pq.ParquetFile(path) as file:
        leaves = [file.schema.column(number).path for number in range(len(file.schema))]
        columns = [leaf for leaf in leaves if not only or leaf.rpartition(".")[2] in only]
        yield from file.iter_batches(ROWS_PER_READ, row_groups=groups, columns=columns)


def count_groups(path: Path) -> int:
    """The number of row groups in a Parquet file; 0 if it is missing."""
    return pq.ParquetFile(path).num_row_groups if path.is_file() else 0


def as_table(records: Iterable[Record], schema: pa.Schema) -> pa.Table:
    """Records as columns."""
    return pa.Table.from_pylist([record.model_dump() for record in records], schema=schema)


def arrow_schema(record: type[BaseModel]) -> pa.Schema:
    """The Arrow schema of a record, from its annotations."""
    return pa.schema([pa.field(name, _arrow_type(field.annotation)) for name, field in record.model_fields.items()])


def _arrow_type(annotation: object) -> pa.DataType:
    """`float | None` is a float, as every Arrow column may have nulls; a `Literal` of texts is a string."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.items()
        return pa.struct([pa.field(name, _arrow_type(field.annotation)) for name, field in fields])
    if get_origin(annotation) is list:
        return pa.list_(_arrow_type(get_args(annotation)[0]))
    scalars: dict[object, pa.DataType] = {float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
    return scalars.get(annotation, pa.string())
