"""Many calls at once: as they are ready, or in the order of what they are for."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


async def gather(
    work: Callable[[Given], Awaitable[Made]], items: Sequence[Given], at_once: int
) -> AsyncIterator[tuple[Given, Made]]:
    """Do the work for every item, at most `at_once` at a time, and yield (item, result) as each is ready.

    The first error ends all other work and is raised; results that were ready beside it are yielded before.
    """
    waiting = iter(items)
    tasks: dict[asyncio.Task[Made], Given] = {}
    try:
        while True:
            while len(tasks) < at_once and (item := next(waiting, None)) is not None:
                tasks[asyncio.ensure_future(work(item))] = item
            if not tasks:
                return
            finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(finished, key=_is_failed):
                yield tasks.pop(task), task.result()
    finally:
        await _end(tasks)


async def in_order(
    work: Callable[[Given], Awaitable[Made]], items: Iterable[Given], at_once: int, ahead: int
) -> AsyncIterator[tuple[Given, Made]]:
    """Do the work for every item, at most `at_once` at a time, and yield (item, result) in the order of the items.

    Items are drawn as they are needed: at most `ahead` of them are under way or wait, done, for an earlier one. The
    first error, of whichever item, ends all other work and is raised.
    """
    places = asyncio.Semaphore(at_once)
    failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    line: deque[tuple[Given, asyncio.Task[Made]]] = deque()
    waiting = iter(items)

    async def in_its_place(item: Given) -> Made:
        async with places:
            if failure.done():
                failure.result()
            try:
                return await work(item)
            except Exception as error:
                if not failure.done():
                    failure.set_exception(error)
                raise

    try:
        while True:
            while len(line) < ahead and (item := next(waiting, None)) is not None:
                line.append((item, asyncio.ensure_future(in_its_place(item))))
            if not line:
                return
            await asyncio.wait((line[0][1], failure), return_when=asyncio.FIRST_COMPLETED)
            if failure.done():
                failure.result()
            item, task = line.popleft()
            yield item, task.result()
    finally:
        await _end([task for _, task in line])
        if not failure.cancel():
            failure.exception()  # seen, or asyncio complains


async def together(calls: Iterable[Coroutine[Any, Any, Made]]) -> list[Made]:
    """The results of calls made at once, in order; the first error ends the others and is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def _end(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    every = list(tasks)
    for task in every:
        task.cancel()
    await asyncio.gather(*every, return_exceptions=True)


def _is_failed(task: asyncio.Task[Any]) -> bool:
    return task.cancelled() or task.exception() is not None
