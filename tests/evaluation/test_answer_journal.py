"""Whether finished rows outlive a kill, and whether a cut line costs no other."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zephyrctl.evaluation.answer_journal import Journal


def test_rows_come_back_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.journal"
    with Journal(path) as journal:
        journal.add("b", {"text": "\n\u2028é"})
        journal.add("a", [None, 0.1])
        assert "b" in journal
        assert "c" not in journal
    with Journal(path) as journal:
        assert list(journal.rows.items()) == [("b", {"text": "\n\u2028é"}), ("a", [None, 0.1])]


def test_a_row_is_on_disk_before_anything_else_is_done(tmp_path: Path) -> None:
    script = "import os, sys; from pathlib import Path; from zephyrctl.evaluation.answer_journal import Journal\n"
    script += "Journal(Path(sys.argv[1])).add('a', 1); os.kill(os.getpid(), 9)"
    path = tmp_path / "rows.journal"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", script, path], env=environment, check=False).returncode == -9
    with Journal(path) as journal:
        assert journal.rows == {"a": 1}


def test_a_line_cut_anywhere_is_not_there_and_the_next_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.journal"
    with Journal(path) as journal:
        journal.add("a", 1)
        kept = path.stat().st_size
        journal.add("b", "é")
    written = path.read_bytes()
    for length in range(kept, len(written)):
        path.write_bytes(written[:length])
        with Journal(path) as journal:
            assert journal.rows == {"a": 1}
            journal.add("c", 3)
        with Journal(path) as journal:
            assert journal.rows == {"a": 1, "c": 3}


def test_opening_never_writes_anew_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.journal"
    with Journal(path) as journal:
        journal.add("a", 1)
    os.link(path, tmp_path / "same file")
    before = path.stat()
    with Journal(path):
        pass
    assert (tmp_path / "same file").stat().st_ino == path.stat().st_ino
    assert path.stat().st_size == before.st_size


def test_a_full_disk_costs_none_of_the_rows_that_are_there(small_disk: Callable[[str], Path]) -> None:
    path = small_disk("16k") / "rows.journal"
    with pytest.raises(OSError, match="No space left"), Journal(path) as journal:
        for number in range(1000):
            journal.add(str(number), "x" * 100)
    for _ in range(3):
        with Journal(path) as journal:
            assert 10 < len(journal.rows) < 1000
            assert set(journal.rows.values()) == {"x" * 100}
