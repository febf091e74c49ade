"""Read the rows of files that others wrote strictly: a bad row is an error, and no row is skipped."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from zephyrctl.errors import BadRow, ZephyrError
from zephyrctl.rows.files import Raw, rows_of


def rows(path: Path) -> Iterator[tuple[str, Raw]]:
    """Each row as (location, row), such as `answers.jsonl line 3`. Raises ZephyrError if a row cannot be read."""
    for location, row in rows_of(path):
        if isinstance(row, BadRow):
            start, _, problem = row.problem.partition(": ")
            raise bad(start, problem)
        yield location, row


def field(row: Raw, name: str, location: str) -> object:
    """The value of a field. Raises ZephyrError if the row has no such field."""
    if name not in row:
        raise bad(location, f"this row has no {name!r}, only {', '.join(list(row)[:8])}")
    return row[name]


def text_field(row: Raw, name: str, location: str) -> str:
    """The text in a field. Raises ZephyrError if the field is missing or is not text."""
    value = field(row, name, location)
    if not isinstance(value, str):
        raise bad(location, f"{name} is {value!r}, and text is expected")
    return value


def bad(location: str, problem: str) -> ZephyrError:
    """The error of a row that cannot be used."""
    return ZephyrError(f"{location}: {problem}", "fix or remove that row, or give a file in the expected form")


def write_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Write JSONL: one object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def write_array(path: Path, array: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(array), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
