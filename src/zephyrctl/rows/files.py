"""Read rows from JSON, JSONL and Parquet files, each with the place it came from."""

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
"""A row, or in its place why it is none: whoever reads it decides whether that stops the work."""
SUFFIXES = {".json", ".jsonl", ".parquet"}


def read_rows(path: Path) -> Iterator[tuple[str, Raw]]:
    """Every row of a file as (where, row). Raises BadRow for a row that is none, and what `rows_of` raises."""
    return ((where, opened(row)) for where, row in rows_of(path))


def opened(row: Read) -> Raw:
    """A row that was read. Raises BadRow where it is none."""
    if isinstance(row, BadRow):
        raise row
    return row


def rows_of(path: Path) -> Iterator[tuple[str, Read]]:
    """Every row of a file as (where, row). Raises ZephyrError for a file that is missing, empty or broken."""
    check_file(path)
    count = 0
    for where, row in _READERS[path.suffix](path):
        count += 1
        yield where, row if isinstance(row, BadRow) else an_object(row, where)
    if not count:
        raise ZephyrError(f"{path} holds no rows", "give a file with at least one row")


def check_file(path: Path) -> None:
    """Raises ZephyrError where a path is no file of rows: missing, empty, a folder, or of another kind."""
    if path.is_dir():
        raise ZephyrError(f"{path} is a folder", "give a .json, .jsonl or .parquet file")
    if not path.exists():
        raise ZephyrError(f"there is no file {path}", "check the path; it is read from the working folder")
    if path.suffix not in SUFFIXES:
        raise ZephyrError(
            f"{path}: rows are not read from {path.suffix or 'such'} files", "give .json, .jsonl or .parquet"
        )
    if not path.stat().st_size:
        raise ZephyrError(f"{path} is empty", "give a file with at least one row")


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    """A JSON array, or one object; a .json file that holds an object a line is read as JSONL."""
    text = _text(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            where = f"{path}:{error.lineno}"
            raise ZephyrError(f"{where}: {_problem(error)}", "mend that line") from None
        yield from _jsonl(path)
        return
    rows = rows if isinstance(rows, list) else [rows]
    for number, row in enumerate(rows, 1):
        yield f"{path} row {number}", row


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                yield where, not_json(where, line, error)


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    with readable(path), pq.ParquetFile(path) as file:
        number = 0
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Says of a file that Parquet's reader gives up on that it is not whole."""
    try:
        yield
    except PermissionError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ZephyrError(f"{path} is no whole Parquet file: {reason}", "write it again") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_text(path, error.start) from None


def not_text(path: Path, place: int) -> ZephyrError:
    """The error of a file whose bytes are not UTF-8 from a place on."""
    return ZephyrError(f"{path} is not UTF-8 text (byte {place})", "save it as UTF-8")


def not_json(where: str, line: str, error: json.JSONDecodeError) -> BadRow:
    """What stands in the place of a line that is not JSON."""
    return BadRow(where, "not JSON", _problem(error), line)


def an_object(row: Any, where: str) -> Read:
    """A row, or what stands in its place where it is no object."""
    if isinstance(row, dict):
        return row
    details = f"a row must be an object, and this is {type(row).__name__}"
    return BadRow(where, "not an object", details, json.dumps(row))


def _problem(error: json.JSONDecodeError) -> str:
    return f"this is not JSON: {error.msg} (column {error.colno})"


_READERS = {".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}
