"""Cut inputs into chunks that one process can read: ranges of JSONL lines, Parquet row groups, or rows in memory."""

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import orjson
import pyarrow.parquet as pq

from zephyrctl.data.cleaning_rules import Kind
from zephyrctl.errors import BadRow
from zephyrctl.records import Dialogue, Prompt, Split
from zephyrctl.rows.files import Read, an_object, check_file, not_json, readable, rows_of

CHUNK_BYTES = 8 * 2**20
"""Bytes of a chunk: a process cleans one in about a second and needs some 40 MB of memory to read it."""
ROWS_IN_MEMORY = 1024
"""Rows of a chunk whose rows are in memory."""
AnyChunk = TypeVar("AnyChunk", bound="Chunk")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Chunk(ABC):
    """A part of the input. Its rows are numbered from `first_row`, over all inputs."""

    source: str
    first_row: int = 0
    kind: Kind = "dialogues"
    split: Split | None = None
    """The published split, if the data set was published with splits."""

    bytes: int = 0
    """How many bytes of its file it covers; 0 for rows that come from elsewhere."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many row numbers it uses."""


class RawChunk(Chunk):
    """A chunk of rows that are still to be read by a row format."""

    @abstractmethod
    def rows(self) -> Iterator[tuple[int, str, Read]]:
        """(row number, file and line, row)."""


@dataclass(frozen=True)
class JsonlChunk(RawChunk):
    """Whole lines of a JSONL file, from byte `start` to byte `end`."""

    path: str = ""
    start: int = 0
    end: int = 0
    first_line: int = 1
    lines: int = 0

    @property
    def size(self) -> int:
        """One number for each line, blank lines included."""
        return self.lines

    def rows(self) -> Iterator[tuple[int, str, Read]]:
        """Its rows. A line that is not UTF-8, not JSON or not an object gives a BadRow."""
        offset = self.start
        for number, line in enumerate(self._read().split(b"\n")):
            if line.strip():
                where = f"{self.path}:{self.first_line + number}"
                yield self.first_row + number, where, self._parse(line, offset, where)
            offset += len(line) + 1

    def count_lines(self) -> int:
        """How many lines begin in it."""
        data = self._read()
        return data.count(b"\n") + (not data.endswith(b"\n"))

    def _read(self) -> bytes:
        with Path(self.path).open("rb") as file:
            file.seek(self.start)
            data = file.read(self.end - self.start)
        # Three spaces for the three bytes of the mark: errors name the byte of the file, so offsets must not move.
        return b" " * 3 + data[3:] if self.start == 0 and data.startswith(BYTE_ORDER_MARK) else data

    def _parse(self, line: bytes, offset: int, where: str) -> Read:
        try:
            return an_object(orjson.loads(line), where)
        except orjson.JSONDecodeError:
            return self._parse_by_python(line, offset, where)

    def _parse_by_python(self, line: bytes, offset: int, where: str) -> Read:
        """Parse again what orjson refuses: Python's rules are wider, and its error names the column."""
        try:
            return an_object(json.loads(line.decode()), where)
        except UnicodeDecodeError as error:
            details = f"this is not UTF-8 text (byte {offset + error.start})"
            return BadRow(where, "not UTF-8 text", details, line.decode(errors="replace"))
        except json.JSONDecodeError as error:
            return not_json(where, line.decode(), error)


@dataclass(frozen=True)
class RowGroupChunk(RawChunk):
    """Consecutive row groups of a Parquet file."""

    path: str = ""
    groups: tuple[int, ...] = ()
    count: int = 0
    first_number: int = 1
    """The number of its first row in the file, from 1."""

    @property
    def size(self) -> int:
        """One number for each row."""
        return self.count

    def rows(self) -> Iterator[tuple[int, str, Read]]:
        """Its rows, of which 256 are in memory at a time."""
        number = 0
        with readable(Path(self.path)), pq.ParquetFile(self.path) as file:
            # No threads: each process has one core, and Arrow's threads would compete for those of the others.
            for batch in file.iter_batches(256, row_groups=list(self.groups), use_threads=False):
                for row in batch.to_pylist():
                    yield self.first_row + number, f"{self.path} row {self.first_number + number}", row
                    number += 1


@dataclass(frozen=True)
class InMemoryChunk(RawChunk):
    """Rows in memory, each with the place that it was read from."""

    read: Sequence[tuple[str, Read]] = ()

    @property
    def size(self) -> int:
        """One number for each row."""
        return len(self.read)

    def rows(self) -> Iterator[tuple[int, str, Read]]:
        """Its rows."""
        for number, (where, row) in enumerate(self.read, self.first_row):
            yield number, where, row


@dataclass(frozen=True)
class RecordChunk(Chunk):
    """Records that a teacher generated."""

    records: Sequence[Dialogue | Prompt] = ()

    @property
    def size(self) -> int:
        """One number for each record."""
        return len(self.records)


def file_chunks(path: Path, chunk_bytes: int = CHUNK_BYTES) -> Iterator[RawChunk]:
    """The chunks of a file, without line numbers (see `number_chunks`). Raises ZephyrError if it cannot be read."""
    check_file(path)
    if path.suffix == ".parquet":
        yield from _row_group_chunks(path, chunk_bytes)
    elif path.suffix == ".jsonl" or _is_jsonl(path):
        yield from _jsonl_chunks(path, chunk_bytes)
    else:
        yield from row_chunks(rows_of(path), path.name)


def row_chunks(rows: Iterable[tuple[str, Read]], source: str, split: Split | None = None) -> Iterator[InMemoryChunk]:
    """Chunks of a stream of (where, row)."""
    remaining = iter(rows)
    while batch := list(islice(remaining, ROWS_IN_MEMORY)):
        yield InMemoryChunk(source=source, split=split, read=batch)


def record_chunks(records: Sequence[Dialogue | Prompt], kind: Kind) -> Iterator[RecordChunk]:
    """Chunks of a teacher's records."""
    for start in range(0, len(records), ROWS_IN_MEMORY):
        yield RecordChunk(source="", kind=kind, records=records[start : start + ROWS_IN_MEMORY])


def number_chunks(chunks: Iterable[AnyChunk]) -> Iterator[AnyChunk]:
    """The chunks with the numbers of their first row and, in JSONL files, of their first line.

    Lines are counted here, in the main process: 8 MB take 4 ms, while other processes clean the chunks before.
    """
    row = 0
    lines: Counter[str] = Counter()
    for chunk in chunks:
        numbered = replace(chunk, first_row=row)
        if isinstance(numbered, JsonlChunk):
            numbered = replace(numbered, first_line=lines[numbered.path] + 1, lines=numbered.count_lines())
            lines[numbered.path] += numbered.lines
        row += numbered.size
        yield numbered


def _is_jsonl(path: Path) -> bool:
    """True for a .json file whose first line is an object, with more lines below."""
    with path.open("rb") as file:
        # An array in one line may be gigabytes long: a first line of more than 8 MB is cut, and so is not JSON.
        first = file.readline(CHUNK_BYTES).removeprefix(BYTE_ORDER_MARK)
        try:
            return isinstance(orjson.loads(first), dict) and bool(file.read(1))
        except orjson.JSONDecodeError:
            return False


def _jsonl_chunks(path: Path, chunk_bytes: int) -> Iterator[JsonlChunk]:
    file_end = path.stat().st_size
    end = 0
    with path.open("rb") as file:
        while end < file_end:
            # Jump `chunk_bytes` ahead and read on to the end of that line. From one byte earlier, because if that byte
            # is a newline the chunk is already whole, and reading on would add the next line.
            file.seek(min(end + chunk_bytes, file_end) - 1)
            file.readline()
            start, end = end, file.tell()
            yield JsonlChunk(source=path.name, path=str(path), start=start, end=end, bytes=end - start)


def _row_group_chunks(path: Path, chunk_bytes: int) -> Iterator[RowGroupChunk]:
    """Join row groups until they reach `chunk_bytes`, uncompressed; a larger group is a chunk by itself."""
    with readable(path), pq.ParquetFile(path) as file:
        metadata = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        sizes = [(group.num_rows, group.total_byte_size) for group in metadata]
    # Bytes on disk for each uncompressed byte: progress is counted in bytes of the file.
    compression = path.stat().st_size / max(1, sum(size for _, size in sizes))
    groups: list[int] = []
    first = 1  # rows of a file are counted from 1 in errors
    for number in range(len(sizes)):
        groups.append(number)
        size = sum(sizes[group][1] for group in groups)
        if size >= chunk_bytes or number == len(sizes) - 1:
            count = sum(sizes[group][0] for group in groups)
            yield RowGroupChunk(
                source=path.name,
                path=str(path),
                groups=tuple(groups),
                count=count,
                first_number=first,
                bytes=int(size * compression),
            )
            first, groups = first + count, []
