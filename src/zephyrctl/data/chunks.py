"""How inputs are cut into shares that one process can read: ranges of JSONL lines, row groups, or rows in memory."""

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
"""A share takes a process about a second, and some 40 MB while it is read."""
ROWS_HELD = 1024
"""Rows of a share that is held in memory."""
Share = TypeVar("Share", bound="Chunk")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Chunk(ABC):
    """A share of the input. Its rows are numbered from `first_row` over all inputs, one a line where it is lines."""

    source: str
    first_row: int = 0
    kind: Kind = "dialogues"
    split: Split | None = None
    """The published side, where there is one."""

    bytes: int = 0
    """Of the file that it is a part of; 0 where the rows come from elsewhere."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many numbers its rows take."""


class RawChunk(Chunk):
    """A share whose rows are in a form of their own, still to be read."""

    @abstractmethod
    def rows(self) -> Iterator[tuple[int, str, Read]]:
        """(number of the row, where it stands, row)."""


@dataclass(frozen=True)
class Lines(RawChunk):
    """Whole lines of a JSONL file, from one byte to another."""

    path: str = ""
    start: int = 0
    end: int = 0
    first_line: int = 1
    lines: int = 0

    @property
    def size(self) -> int:
        """One number a line."""
        return self.lines

    def rows(self) -> Iterator[tuple[int, str, Read]]:
        """Its rows; where a line is not JSON, no object, or not UTF-8, that stands in its place."""
        place = self.start
        for number, line in enumerate(self._read().split(b"\n")):
            if line.strip():
                where = f"{self.path}:{self.first_line + number}"
                yield self.first_row + number, where, self._row(line, place, where)
            place += len(line) + 1

    def count(self) -> int:
        """How many lines begin in it."""
        data = self._read()
        return data.count(b"\n") + (not data.endswith(b"\n"))

    def _read(self) -> bytes:
        with Path(self.path).open("rb") as file:
            file.seek(self.start)
            data = file.read(self.end - self.start)
        return b" " * 3 + data[3:] if self.start == 0 and data.startswith(BYTE_ORDER_MARK) else data

    def _row(self, line: bytes, place: int, where: str) -> Read:
        try:
            return an_object(orjson.loads(line), where)
        except orjson.JSONDecodeError:
            return self._row_again(line, place, where)

    def _row_again(self, line: bytes, place: int, where: str) -> Read:
        """What orjson refuses may be JSON by Python's wider rules; if not, its error has the column."""
        try:
            return an_object(json.loads(line.decode()), where)
        except UnicodeDecodeError as error:
            details = f"this is not UTF-8 text (byte {place + error.start})"
            return BadRow(where, "not UTF-8 text", details, line.decode(errors="replace"))
        except json.JSONDecodeError as error:
            return not_json(where, line.decode(), error)


@dataclass(frozen=True)
class Groups(RawChunk):
    """Some row groups of a Parquet file, one after another."""

    path: str = ""
    groups: tuple[int, ...] = ()
    count: int = 0
    first_number: int = 1

    @property
    def size(self) -> int:
        """One number a row."""
        return self.count

    def rows(self) -> Iterator[tuple[int, str, Read]]:
        """Its rows, a batch in memory at a time."""
        number = 0
        with readable(Path(self.path)), pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(256, row_groups=list(self.groups), use_threads=False):
                for row in batch.to_pylist():
                    yield self.first_row + number, f"{self.path} row {self.first_number + number}", row
                    number += 1


@dataclass(frozen=True)
class Held(RawChunk):
    """Rows in memory, each with where it stood."""

    held: Sequence[tuple[str, Read]] = ()

    @property
    def size(self) -> int:
        """One number a row."""
        return len(self.held)

    def rows(self) -> Iterator[tuple[int, str, Read]]:
        """Its rows."""
        for number, (where, row) in enumerate(self.held, self.first_row):
            yield number, where, row


@dataclass(frozen=True)
class Made(Chunk):
    """Records that a teacher made, in the form that they keep."""

    made: Sequence[Dialogue | Prompt] = ()

    @property
    def size(self) -> int:
        """One number a record."""
        return len(self.made)


def of_file(path: Path, chunk_bytes: int = CHUNK_BYTES) -> Iterator[RawChunk]:
    """The shares of a file; lines are not counted yet. Raises ZephyrError where it cannot be read."""
    check_file(path)
    if path.suffix == ".parquet":
        yield from _groups(path, chunk_bytes)
    elif path.suffix == ".jsonl" or _is_lines(path):
        yield from _lines(path, chunk_bytes)
    else:
        yield from held(rows_of(path), path.name)


def held(rows: Iterable[tuple[str, Read]], source: str, split: Split | None = None) -> Iterator[Held]:
    """Shares of rows that come one after another."""
    remaining = iter(rows)
    while some := list(islice(remaining, ROWS_HELD)):
        yield Held(source=source, split=split, held=some)


def made(records: Sequence[Dialogue | Prompt], kind: Kind) -> Iterator[Made]:
    """Shares of a teacher's records."""
    for start in range(0, len(records), ROWS_HELD):
        yield Made(source="", kind=kind, made=records[start : start + ROWS_HELD])


def numbered(chunks: Iterable[Share]) -> Iterator[Share]:
    """The shares with the number of their first row, and of their first line where they are lines.

    Lines are counted here, 8 MB in 4 ms, while other processes clean what came before.
    """
    row = 0
    lines: Counter[str] = Counter()
    for chunk in chunks:
        numbered = replace(chunk, first_row=row)
        if isinstance(numbered, Lines):
            numbered = replace(numbered, first_line=lines[numbered.path] + 1, lines=numbered.count())
            lines[numbered.path] += numbered.lines
        row += numbered.size
        yield numbered


def _is_lines(path: Path) -> bool:
    """True for a .json file whose first line is an object by itself and not the last."""
    with path.open("rb") as file:
        first = file.readline(CHUNK_BYTES).removeprefix(BYTE_ORDER_MARK)
        try:
            return isinstance(orjson.loads(first), dict) and bool(file.read(1))
        except orjson.JSONDecodeError:
            return False


def _lines(path: Path, chunk_bytes: int) -> Iterator[Lines]:
    end = path.stat().st_size
    start = 0
    with path.open("rb") as file:
        while start < end:
            file.seek(min(start + chunk_bytes, end) - 1)
            file.readline()
            begin, start = start, file.tell()
            yield Lines(source=path.name, path=str(path), start=begin, end=start, bytes=start - begin)


def _groups(path: Path, chunk_bytes: int) -> Iterator[Groups]:
    """Row groups are put together until they are a share; one that is larger is read a batch at a time."""
    with readable(path), pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        sizes = [(group.num_rows, group.total_byte_size) for group in groups]
    per_byte = path.stat().st_size / max(1, sum(weight for _, weight in sizes))
    chosen: list[int] = []
    first = 1
    for number in range(len(sizes)):
        chosen.append(number)
        weight = sum(sizes[group][1] for group in chosen)
        if weight >= chunk_bytes or number == len(sizes) - 1:
            count = sum(sizes[group][0] for group in chosen)
            yield Groups(
                source=path.name,
                path=str(path),
                groups=tuple(chosen),
                count=count,
                first_number=first,
                bytes=int(weight * per_byte),
            )
            first, chosen = first + count, []
