"""Whether many calls at once stay bounded, lose nothing, keep order where it counts, and end with the first error."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from zephyrctl.concurrency import gather, in_order, together


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


class Work:
    """Work that ends when it is told to."""

    def __init__(self) -> None:
        self.under_way: dict[int, asyncio.Future[int]] = {}
        self.ended: list[int] = []
        self.drawn = 0

    def items(self, count: int) -> Iterator[int]:
        """Numbers, counted as they are drawn."""
        for number in range(count):
            self.drawn += 1
            yield number

    async def do(self, item: int) -> int:
        """Ten times the item, once `end` is called for it."""
        self.under_way[item] = asyncio.get_running_loop().create_future()
        try:
            return await self.under_way[item]
        finally:
            self.ended.append(item)

    async def end(self, item: int, error: Exception | None = None) -> None:
        """Let one go on."""
        future = self.under_way.pop(item)
        if error:
            future.set_exception(error)
        else:
            future.set_result(10 * item)
        await settle()


async def settle() -> None:
    """Let everything that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def drain(pairs: AsyncIterator[tuple[int, int]]) -> None:
    """Read all there is."""
    async for _ in pairs:
        pass


def test_results_come_in_the_order_of_their_items_whichever_is_ready_first() -> None:
    async def use() -> None:
        work, got = Work(), list[tuple[int, int]]()

        async def read() -> None:
            async for pair in in_order(work.do, work.items(4), at_once=4, ahead=4):
                got.append(pair)

        reader = asyncio.ensure_future(read())
        await settle()
        for item, expected in ((2, 0), (3, 0), (0, 1), (1, 4)):
            await work.end(item)
            assert len(got) == expected
        await reader
        assert got == [(0, 0), (1, 10), (2, 20), (3, 30)]

    asyncio.run(use())


def test_no_more_are_under_way_or_waiting_than_may_be() -> None:
    async def use() -> None:
        work = Work()
        reader = asyncio.ensure_future(drain(in_order(work.do, work.items(100), at_once=2, ahead=5)))
        await settle()
        assert (sorted(work.under_way), work.drawn) == ([0, 1], 5)
        await work.end(1)  # the first item holds the line: others go on until `ahead` is reached
        await work.end(2)
        await work.end(3)
        await work.end(4)
        assert (sorted(work.under_way), work.drawn) == ([0], 5)
        await work.end(0)
        assert (sorted(work.under_way), work.drawn) == ([5, 6], 10)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert sorted(work.ended) == [0, 1, 2, 3, 4, 5, 6]

    asyncio.run(use())


def test_the_first_error_of_any_item_ends_the_others_at_once() -> None:
    async def use() -> None:
        work = Work()
        reader = asyncio.ensure_future(drain(in_order(work.do, work.items(9), at_once=3, ahead=9)))
        await settle()
        await work.end(2, ValueError("broken"))  # not the first in line
        with pytest.raises(ValueError, match="broken"):
            await asyncio.wait_for(reader, 5)
        assert sorted(work.ended) == [0, 1, 2]
        assert work.drawn == 9

    asyncio.run(use())


def test_nothing_gives_nothing() -> None:
    async def use() -> list[tuple[int, int]]:
        return [pair async for pair in in_order(Work().do, list[int](), at_once=1, ahead=1)]

    assert asyncio.run(use()) == []


def test_calls_made_together_keep_their_order_and_end_at_the_first_error() -> None:
    async def use() -> None:
        work = Work()
        whole = asyncio.ensure_future(together(work.do(item) for item in range(3)))
        await settle()
        for item in (2, 0, 1):
            await work.end(item)
        assert await whole == [0, 10, 20]
        broken = asyncio.ensure_future(together(work.do(item) for item in range(3)))
        await settle()
        await work.end(1, ValueError("broken"))
        with pytest.raises(ValueError, match="broken"):
            await broken
        assert sorted(work.ended[3:]) == [0, 1, 2]

    asyncio.run(use())
