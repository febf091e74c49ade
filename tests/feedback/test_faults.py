"""Whether rows, ratings and the ledger come out right where the server fails and the process is killed."""

from pathlib import Path

import pytest

from benchmarks import faults, kills

pytestmark = pytest.mark.slow


def test_a_fifth_of_all_calls_may_fail(tmp_path: Path) -> None:
    """Every row completes or is listed with its cause, and the ledger is exact to the last attempt."""
    measured = faults.measure(tmp_path, prompts=30, rate=0.2, attempts=3, timeout=1.5)
    assert measured["holds"] == dict.fromkeys(measured["holds"], True)
    assert sum(measured["attempts_in_the_ledger"].values()) > measured["calls"] > 150
    assert len(measured["requests_seen"]) >= 6


def test_kills_lose_nothing_and_pay_for_nothing_twice(tmp_path: Path) -> None:
    """Some kills, somewhere; the rest of fifty is a benchmark."""
    measured = kills.measure(tmp_path, kills=4, prompts=12, seconds=0.05)
    assert measured["holds"] == dict.fromkeys(measured["holds"], True)
    assert measured["killed"] == 4
