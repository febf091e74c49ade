"""Rows of files that others wrote: none is skipped, and what cannot be read is an error that says where."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from zephyrctl.errors import BadRow, ZephyrError
from zephyrctl.rows.files import Raw, rows_of


def rows(path: Path) -> Iterator[tuple[str, Raw]]:
    """Every row as (where, row). Raises ZephyrError for a file or a row that cannot be read."""
    for where, row in rows_of(path):
        if isinstance(row, BadRow):
            raise bad(row.problem.partition(": ")[0], row.problem.partition(": ")[2])
        yield where, row


def field(row: Raw, name: str, where: str, kind: type = object) -> Any:
    """A field that a row must have, of that kind. Raises ZephyrError where it is missing or another kind."""
    if name not in row:
        raise bad(where, f"this row has no {name!r}, only {', '.join(list(row)[:8])}")
    if not isinstance(row[name], kind):
        raise bad(where, f"{name} is {row[name]!r}, and {kind.__name__} is expected")
    return row[name]


def bad(where: str, problem: str) -> ZephyrError:
    """The error of a row that cannot be used."""
    return ZephyrError(f"{where}: {problem}", "mend or remove that row, or give a file of the form that is read here")


def write_lines(path: Path, lines: Iterable[Raw]) -> None:
    """JSONL, one object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def write_array(path: Path, array: Iterable[Raw]) -> None:
    """One JSON array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(array), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
