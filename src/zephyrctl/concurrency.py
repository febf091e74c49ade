"""Run many calls concurrently, and yield results as they are ready or in order."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def gather(
    work: Callable[[Item], Awaitable[Result]], items: Sequence[Item], at_once: int
) -> AsyncIterator[tuple[Item, Result]]:
    """Do the work for every item, at most `at_once` at a time, and yield each (item, result) when it is ready.

    The first error cancels all other work and is raised; results that were ready by then are yielded first.
    """
    waiting = iter(items)
    tasks: dict[asyncio.Task[Result], Item] = {}
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
        await _cancel(tasks)


async def in_order(
    work: Callable[[Item], Awaitable[Result]], items: Iterable[Item], at_once: int, ahead: int
) -> AsyncIterator[tuple[Item, Result]]:
    """Do the work for every item, at most `at_once` at a time, and yield (item, result) in the order of the items.

    Items are read as they are needed: at most `ahead` of them are in work, or done and waiting for an earlier one. The
    first error, of whichever item, cancels all other work and is raised.
    """
    slots = asyncio.Semaphore(at_once)
    failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    queue: deque[tuple[Item, asyncio.Task[Result]]] = deque()
    waiting = iter(items)

    async def do(item: Item) -> Result:
        async with slots:
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
            while len(queue) < ahead and (item := next(waiting, None)) is not None:
                queue.append((item, asyncio.ensure_future(do(item))))
            if not queue:
                return
            await asyncio.wait((queue[0][1], failure), return_when=asyncio.FIRST_COMPLETED)
            if failure.done():
                failure.result()
            item, task = queue.popleft()
            yield item, task.result()
    finally:
        await _cancel([task for _, task in queue])
        if not failure.cancel():
            failure.exception()  # mark it as retrieved, or asyncio logs a warning


async def together(calls: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of concurrent calls, in order; the first error cancels the others and is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    every = list(tasks)
    for task in every:
        task.cancel()
    await asyncio.gather(*every, return_exceptions=True)


def _is_failed(task: asyncio.Task[Any]) -> bool:
    return task.cancelled() or task.exception() is not None
