"""Whether rows are read from every form of file, and whether a file that cannot be read says where it is wrong."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zephyrctl.errors import ZephyrError
from zephyrctl.rows.files import read_rows

ROWS: list[dict[str, Any]] = [{"id": 1, "text": "Hé\u2028 “1”\n"}, {"id": 2, "text": ""}, {"id": 3, "text": "c"}]


def lines(rows: list[Any], end: str = "\n") -> bytes:
    """The rows, one JSON a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


GOOD = {
    "array.json": json.dumps(ROWS).encode(),
    "indented.json": json.dumps(ROWS, indent=4).encode(),
    "lines.jsonl": lines(ROWS),
    "lines.json": lines(ROWS),
    "no last end.jsonl": lines(ROWS).rstrip(b"\n"),
    "blank lines.jsonl": b"\n\n" + lines(ROWS, "\n \n"),
    "windows.jsonl": lines(ROWS, "\r\n"),
    "windows.json": json.dumps(ROWS, indent=1).replace("\n", "\r\n").encode(),
    "marked.jsonl": b"\xef\xbb\xbf" + lines(ROWS),
    "marked.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "marked lines.json": b"\xef\xbb\xbf" + lines(ROWS),
}


@pytest.mark.parametrize("name", GOOD)
def test_rows_come_in_order_whatever_the_form(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(GOOD[name])
    read = list(read_rows(path))
    assert [row for _, row in read] == ROWS
    assert len({where for where, _ in read}) == len(ROWS)
    assert all(where.startswith(str(path)) for where, _ in read)


def test_parquet_rows_come_in_order_over_many_groups(tmp_path: Path) -> None:
    rows = [{"id": number, "messages": [{"role": "user", "content": str(number)}]} for number in range(2500)]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    read = list(read_rows(path))
    assert [row for _, row in read] == rows
    assert read[-1][0] == f"{path} row 2500"


def test_a_jsonl_row_is_placed_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert [where for where, _ in read_rows(path)] == [f"{path}:2", f"{path}:4"]


def test_one_object_over_many_lines_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(ROWS[0], indent=2))
    assert [row for _, row in read_rows(path)] == ROWS[:1]


BAD = {
    "empty.json": (b"", "{path} is empty"),
    "empty.jsonl": (b"", "{path} is empty"),
    "empty.parquet": (b"", "{path} is empty"),
    "blank.json": (b" \n\t\n", "{path} contains no rows"),
    "blank.jsonl": (b"\n\n", "{path} contains no rows"),
    "none.json": (b"[]", "{path} contains no rows"),
    "cut.json": (b'[{"a": 1},\n {"a": 2},\n {"a"', "{path}:3: this is not JSON"),
    "comma.json": (b'[{"a": 1},\n]', "{path}:2: this is not JSON"),
    "cut.jsonl": (b'{"a": 1}\n\n{"a": \n{"a": 3}\n', "{path}:3: this is not JSON"),
    "cut lines.json": (b'{"a": 1}\n{"a": ', "{path}:2: this is not JSON"),
    "two in a line.jsonl": (b'{"a": 1}\n{"a": 2}{"a": 3}\n', "{path}:2: this is not JSON"),
    "words.jsonl": (b"just words\n", "{path}:1: this is not JSON"),
    "number.json": (b"[1, 2]", "{path} row 1: a row must be an object, not int"),
    "text.json": (b'"text"', "{path} row 1: a row must be an object, not str"),
    "list.jsonl": (b'{"a": 1}\n["a"]\n', "{path}:2: a row must be an object, not list"),
    "null.jsonl": (b"null\n", "{path}:1: a row must be an object, not NoneType"),
    "latin.jsonl": ('{"a": "é"}\n'.encode("latin-1"), "{path} is not UTF-8 text"),
    "wide.json": ('[{"a": 1}]'.encode("utf-16"), "{path} is not UTF-8 text"),
    "text.parquet": (b"not parquet at all", "{path} is not a complete Parquet file"),
    "rows.csv": (b"a,b\n1,2\n", "{path}: cannot read rows from .csv files"),
    "rows": (b"{}", "{path}: cannot read rows from such files"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_says_where_it_is_wrong(tmp_path: Path, name: str) -> None:
    content, problem = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ZephyrError) as caught:
        list(read_rows(path))
    assert caught.value.problem.startswith(problem.format(path=path))
    assert caught.value.remedy


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ZephyrError, match="there is no file"):
        list(read_rows(tmp_path / "gone.jsonl"))
    with pytest.raises(ZephyrError, match="is a folder"):
        list(read_rows(tmp_path))


def test_rows_before_a_broken_line_are_not_held_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\nbroken\n')
    read = []
    with pytest.raises(ZephyrError, match=":3: "):
        for _, row in read_rows(path):
            read.append(row)
    assert len(read) == 2


def test_parquet_without_rows_holds_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), path)
    with pytest.raises(ZephyrError, match="contains no rows"):
        list(read_rows(path))


def test_parquet_cut_anywhere_or_damaged_inside_is_never_read_short(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"text": f"text {number}" * 9} for number in range(500)]), path)
    whole = path.read_bytes()
    for length in (1, 7, 8, 12, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ZephyrError, match="is not a complete Parquet file"):
            list(read_rows(path))
    path.write_bytes(whole[:8] + bytes(40) + whole[48:])
    with pytest.raises(ZephyrError, match="is not a complete Parquet file"):
        list(read_rows(path))
