"""Whether work done at once comes back in its order, and one failed call costs one item only."""

import asyncio
from pathlib import Path
from random import Random

import pytest

from tests.data.rows_made import open_draft
from zephyrctl.data.conversations import run_conversations, seed_of
from zephyrctl.errors import CallFailed, ZephyrError
from zephyrctl.progress import Silence
from zephyrctl.runs.artifacts import Draft
from zephyrctl.runs.run import Run


async def late(number: int) -> int:
    """The square, some time later; every fifth fails."""
    for _ in range(Random(number).randint(0, 9)):
        await asyncio.sleep(0)
    if number % 5 == 0:
        raise CallFailed("refused", "wait", cause="too busy" if number else "a wrong request")
    return number * number


def held(draft: Draft, at_once: int) -> list[tuple[int, int]]:
    """Twenty squares."""
    return asyncio.run(run_conversations(late, range(20), at_once, draft, Silence(), "squares", kind="squares"))


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_results_keep_their_order_and_failures_are_counted_by_cause(tmp_path: Path, at_once: int) -> None:
    with open_draft(Run(tmp_path)) as draft:
        assert held(draft, at_once) == [(number, number * number) for number in range(20) if number % 5]
    assert draft.dropped == {"squares that failed: a wrong request": 1, "squares that failed: too busy": 3}


def test_any_other_error_ends_all_work(tmp_path: Path) -> None:
    ended: list[int] = []

    async def work(number: int) -> None:
        if number == 3:
            raise ZephyrError("the budget is spent", "raise it")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(number)

    with open_draft(Run(tmp_path)) as draft, pytest.raises(ZephyrError, match="budget"):
        asyncio.run(run_conversations(work, range(8), 4, draft, Silence(), ""))
    assert sorted(ended) == [0, 1, 2]
    assert draft.dropped == {}


def test_seeds_hang_on_the_recipes_seed_and_the_key() -> None:
    assert seed_of(0, "a") == seed_of(0, "a") < 2**32
    assert len({seed_of(seed, key) for seed in range(10) for key in "abcde"}) == 50
