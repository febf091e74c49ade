"""Hold many conversations with teachers at once, so that one that fails does not stop the others."""

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from zephyrctl.concurrency import gather
from zephyrctl.errors import CallFailed
from zephyrctl.progress import Progress
from zephyrctl.runs.artifacts import Draft

Item = TypeVar("Item")
Result = TypeVar("Result")


async def run_conversations(
    work: Callable[[Item], Awaitable[Result]],
    items: Sequence[Item],
    at_once: int,
    draft: Draft,
    progress: Progress,
    note: str,
    kind: str = "conversations",
) -> list[tuple[Item, Result]]:
    """(item, result of `work`) in the order of the items, of which `at_once` are worked on at a time.

    An item whose call failed is left out, and counted in the draft by its cause as one of `kind`. Any other error ends
    all work and is raised.
    """

    async def attempt(number: int) -> Result | CallFailed:
        try:
            return await work(items[number])
        except CallFailed as error:
            return error

    outcomes: dict[int, Result | CallFailed] = {}
    async for number, outcome in gather(attempt, range(len(items)), at_once):
        outcomes[number] = outcome
        progress.advance(len(outcomes), len(items), note)
    ordered = [(items[number], outcomes[number]) for number in range(len(items))]
    failed = Counter(outcome.cause for _, outcome in ordered if isinstance(outcome, CallFailed))
    for cause, count in failed.items():
        draft.drop(f"{kind} that failed: {cause}", count)
    return [(item, outcome) for item, outcome in ordered if not isinstance(outcome, CallFailed)]


def seed_of(seed: int, key: str) -> int:
    """The sampling seed of a conversation, from the recipe's seed and the conversation's key: below 2^32."""
    return int(hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()[:8], 16)
