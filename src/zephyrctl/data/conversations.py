"""How are many conversations with teachers held at once, so that one that fails costs no other?"""

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

from zephyrctl.concurrency import gather
from zephyrctl.errors import CallFailed
from zephyrctl.progress import Progress
from zephyrctl.records import Message
from zephyrctl.runs.artifacts import Draft

Item = TypeVar("Item")
Made = TypeVar("Made")


async def hold(
    work: Callable[[Item], Awaitable[Made]],
    items: Sequence[Item],
    at_once: int,
    draft: Draft,
    progress: Progress,
    note: str,
    kind: str = "conversations",
) -> list[tuple[Item, Made]]:
    """Each item with what was made of it, in the order of the items, whichever was ready first.

    An item whose call failed is left out and counted by cause, as one of a `kind`; every other error ends all work and
    is raised.
    """

    async def attempt(place: int) -> Made | CallFailed:
        try:
            return await work(items[place])
        except CallFailed as error:
            return error

    made: dict[int, Made | CallFailed] = {}
    async for place, outcome in gather(attempt, range(len(items)), at_once):
        made[place] = outcome
        progress.advance(len(made), len(items), note)
    ordered = [(items[place], made[place]) for place in range(len(items))]
    failed = Counter(outcome.cause for _, outcome in ordered if isinstance(outcome, CallFailed))
    for cause, count in failed.items():
        draft.drop(f"{kind} that failed: {cause}", count)
    return [(item, outcome) for item, outcome in ordered if not isinstance(outcome, CallFailed)]


def seed_of(seed: int, key: str) -> int:
    """The sampling seed of a conversation, from the recipe's seed and the conversation's key: below 2^32."""
    return int(hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()[:8], 16)


def said(role: Literal["user", "assistant"], text: str) -> Message:
    """One turn."""
    return Message(role=role, content=text)
