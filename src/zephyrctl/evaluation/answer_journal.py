"""An append-only file of finished rows: what is in it is not done, or paid for, again."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Journal:
    """Rows by key, one JSON line each; a line that was cut by a kill is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Any] = {}
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
            if line.endswith(b"\n"):
                entry = json.loads(line)
                self.rows[entry["key"]] = entry["row"]
                whole += len(line)
        self._file = path.open("a")
        self._file.truncate(whole)  # never written anew: a full disk or a kill must not cost the rows that are there

    def add(self, key: str, row: Any) -> None:
        """Record a finished row before anything else is done with it."""
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
