"""Read rows from JSON, JSONL and Parquet files, each with its file and line."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zephyrctl.errors import BadRow, ZephyrError

Raw = dict[str, Any]
Read = Raw | BadRow
"""A row, or the error of a bad row: whoever reads it decides whether to stop or to skip it."""
SUFFIXES = {".json", ".jsonl", ".parquet"}


def read_rows(path: Path) -> Iterator[tuple[str, Raw]]:
    """Every row of a file as (where, row). Raises BadRow for a bad row, and what `rows_of` raises."""
    return ((where, opened(row)) for where, row in rows_of(path))


def opened(row: Read) -> Raw:
    """The row that was read. Raises the error of a bad row."""
    if isinstance(row, BadRow):
        raise row
    return row


def rows_of(path: Path) -> Iterator[tuple[str, Read]]:
    """Every row of a file as (where, row or BadRow). Raises ZephyrError if the file is missing, empty or broken."""
    check_file(path)
    count = 0
    for where, row in _READERS[path.suffix](path):
        count += 1
        yield where, row if isinstance(row, BadRow) else an_object(row, where)
    if not count:
        raise ZephyrError(f"{path} contains no rows", "give a file with at least one row")


def check_file(path: Path) -> None:
    """Raise ZephyrError if a path is not a file of rows: missing, empty, a folder, or of another type."""
    if path.is_dir():
        raise ZephyrError(f"{path} is a folder", "give a .json, .jsonl or .parquet file")
    if not path.exists():
        raise ZephyrError(f"there is no file {path}", "check the path; it is read from the working folder")
    if path.suffix not in SUFFIXES:
        raise ZephyrError(
            f"{path}: cannot read rows from {path.suffix or 'such'} files", "give a .json, .jsonl or .parquet file"
        )
    if not path.stat().st_size:
        raise ZephyrError(f"{path} is empty", "give a file with at least one row")


def _json(path: Path) -> Iterator[tuple[str, object]]:
    """A JSON array, or one object; a .json file with one object per line is read as JSONL."""
    text = _text(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            where = f"{path}:{error.lineno}"
            raise ZephyrError(f"{where}: {_problem(error)}", "fix that line") from None
        yield from _jsonl(path)
        return
    rows = rows if isinstance(rows, list) else [rows]
    for number, row in enumerate(rows, 1):
        yield f"{path} row {number}", row


def _jsonl(path: Path) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                yield where, not_json(where, line, error)


def _parquet(path: Path) -> Iterator[tuple[str, object]]:
    with readable(path), pq.ParquetFile(path) as file:
        number = 0
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise ZephyrError if Parquet's reader fails inside the `with`: the file is cut or damaged."""
    try:
        yield
    except PermissionError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ZephyrError(f"{path} is not a complete Parquet file: {reason}", "write it again") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_text(path, error.start) from None


def not_text(path: Path, byte: int) -> ZephyrError:
    """The error for a file whose bytes are not UTF-8 from this byte on."""
    return ZephyrError(f"{path} is not UTF-8 text (byte {byte})", "save it as UTF-8")


def not_json(where: str, line: str, error: json.JSONDecodeError) -> BadRow:
    """The error for a line that is not JSON."""
    return BadRow(where, "not JSON", _problem(error), line)


def an_object(row: object, where: str) -> Read:
    """The row, or a BadRow if it is not an object."""
    if isinstance(row, dict):
        return row
    details = f"a row must be an object, not {type(row).__name__}"
    return BadRow(where, "not an object", details, json.dumps(row))


def _problem(error: json.JSONDecodeError) -> str:
    return f"this is not JSON: {error.msg} (column {error.colno})"


_READERS = {".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}
