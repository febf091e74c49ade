"""Whether many calls at once stay bounded, lose nothing, and end with the first error."""

import asyncio

import pytest

from zephyrctl.concurrency import gather


async def collect(delays: dict[str, float], at_once: int, failing: str = "") -> tuple[dict[str, str], int, list[str]]:
    """(results, most calls in flight, calls that were cancelled) of calls that take so many seconds."""
    flying = most = 0
    cancelled: list[str] = []
    results: dict[str, str] = {}

    async def work(item: str) -> str:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        try:
            await asyncio.sleep(delays[item])
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        finally:
            flying -= 1
        if item == failing:
            raise ValueError(f"{item} fails")
        return item.upper()

    try:
        async for item, made in gather(work, list(delays), at_once):
            results[item] = made
    except ValueError as error:
        results["error"] = str(error)
    assert flying == 0
    return results, most, cancelled


@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
def test_every_item_gets_its_own_result_and_no_more_fly_than_allowed(at_once: int) -> None:
    delays = {letter: 0.001 * (place * 7 % 5) for place, letter in enumerate("abcdefghij")}
    results, most, cancelled = asyncio.run(collect(delays, at_once))
    assert results == {letter: letter.upper() for letter in delays}
    assert most == min(at_once, len(delays))
    assert cancelled == []


def test_no_items_are_no_results() -> None:
    assert asyncio.run(collect({}, 3))[0] == {}


def test_results_come_as_they_are_ready() -> None:
    assert list(asyncio.run(collect({"slow": 0.05, "fast": 0.001}, 2))[0]) == ["fast", "slow"]


def test_the_first_error_ends_all_other_work() -> None:
    results, _, cancelled = asyncio.run(collect({"bad": 0.001, "slow": 60, "never": 60}, 2, failing="bad"))
    assert results == {"error": "bad fails"}
    assert cancelled == ["slow"]


def test_results_ready_beside_an_error_are_not_lost() -> None:
    delays = {"a": 0.0, "bad": 0.0, "b": 0.0, "c": 0.0}
    results, _, _ = asyncio.run(collect(delays, 4, failing="bad"))
    assert results == {"a": "A", "b": "B", "c": "C", "error": "bad fails"}
