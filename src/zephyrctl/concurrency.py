"""Many calls at once, bounded, in any order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
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
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_failed(task: asyncio.Task[Any]) -> bool:
    return task.cancelled() or task.exception() is not None
