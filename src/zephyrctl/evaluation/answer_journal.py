"""Keep finished rows in an append-only file, so that a resumed evaluation does not generate them again."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Journal:
    """Rows by key, one JSON line each. A last line that a kill cut off is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Any] = {}  # JSON values; whoever wrote a row knows its form
        complete_bytes = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
            if line.endswith(b"\n"):
                entry = json.loads(line)
                self.rows[entry["key"]] = entry["row"]
                complete_bytes += len(line)
        self._file = path.open("a")
        self._file.truncate(complete_bytes)  # not rewritten: a full disk or a kill must not lose finished rows

    def add(self, key: str, row: object) -> None:
        """Write a finished row to the file at once."""
        self._file.write(json.dumps({"key": key, "row": row}) + "\n")
        self._file.flush()
        self.rows[key] = row

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
