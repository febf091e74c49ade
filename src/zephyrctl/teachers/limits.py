"""What holds calls back: a budget, units per minute, calls at once, and the rest that a server asks for.

Three kept libraries were measured against what a recipe promises, and none fits: aiolimiter is a leaky bucket, which
lets nearly twice the limit through in a teacher's first minute; pyrate-limiter and limits count a window exactly, but
store one entry per token, and none can correct an estimate of tokens by what a call really used. tenacity takes 55 us
per call that succeeds (a whole call takes 700), and our retry is a loop of twenty lines either way, since each failure
may end the call, end the stage or rest the server.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from zephyrctl.contracts import Teacher
from zephyrctl.recipe.schema import Limits
from zephyrctl.teachers.call_log import canonical
from zephyrctl.teachers.prices import Price

MINUTE_SECONDS = 60.0
LONGEST_NAP_SECONDS = 1.0


class Budget:
    """US dollars that may be spent, and what calls in flight may still cost."""

    def __init__(self, most: float | None) -> None:
        self.most = most
        self.spent = 0.0
        self._reserved = 0.0
        self._changed = asyncio.Event()

    async def reserve(self, worst: float) -> bool:
        """Wait until `worst` dollars fit beside the calls in flight; False if they do not fit even without those."""
        if self.most is not None:
            while self.spent + self._reserved + worst > self.most:
                if not self._reserved:
                    return False
                self._changed.clear()
                await self._changed.wait()
        self._reserved += worst
        return True

    def release(self, worst: float) -> None:
        """End a call's reservation; what it really cost is added to `spent` by the caller."""
        left = self._reserved - worst
        # Sums of floats leave crumbs. If those counted as reserved, `reserve` would wait for a call that is not there.
        self._reserved = left if left > 1e-12 else 0.0
        self._changed.set()


@dataclass
class MinuteEntry:
    """Units taken from a minute; `units` may be corrected while the minute lasts."""

    taken_at: float
    units: float


@dataclass
class MinuteWindow:
    """Lets at most `most` units through in any span of 60 seconds."""

    most: int | None
    """None for no limit."""
    entries: deque[MinuteEntry] = field(default_factory=deque)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def take(self, units: float) -> MinuteEntry:
        """Wait for room, first come, first served. More units than fit into a minute are let through alone."""
        entry = MinuteEntry(time.monotonic(), units)
        if self.most is None:
            return entry
        async with self.lock:
            while self._is_full(units):
                # Short naps, not one sleep to the end of the oldest entry: corrected estimates may make room earlier.
                oldest_ends_in = self.entries[0].taken_at + MINUTE_SECONDS - time.monotonic()
                await asyncio.sleep(max(0.001, min(LONGEST_NAP_SECONDS, oldest_ends_in)))
            entry.taken_at = time.monotonic()
            self.entries.append(entry)
        return entry

    def _is_full(self, units: float) -> bool:
        while self.entries and self.entries[0].taken_at <= time.monotonic() - MINUTE_SECONDS:
            self.entries.popleft()
        return bool(self.entries) and sum(entry.units for entry in self.entries) + units > (self.most or 0)


class RateLimitedTeacher:
    """A teacher with its limits, its price, and how many of its calls failed in a row."""

    def __init__(self, teacher: Teacher, limits: Limits, price: Price | None) -> None:
        self.teacher = teacher
        self.limits = limits
        self.price = price
        self.identity = "" if teacher.is_rule_based else canonical(teacher.identity)
        """The options on which its replies depend, as canonical JSON: the same for every call."""
        self.failed_in_a_row = 0
        self.has_answered = False
        self.unreached_since: float | None = None
        """When the first call failed to reach its server, by the monotonic clock."""
        self._at_once = asyncio.Semaphore(limits.concurrency)
        self._requests = MinuteWindow(limits.requests_per_minute)
        self._tokens = MinuteWindow(limits.tokens_per_minute)
        self._rests_until = 0.0

    def rest(self, seconds: float) -> None:
        """Begin no call for `seconds`, as the server asks (Retry-After)."""
        self._rests_until = max(self._rests_until, time.monotonic() + seconds)

    async def enter(self, tokens: int) -> MinuteEntry:
        """Wait until a call of about `tokens` may begin: a free slot, the end of rests, and room in the minute.

        Returns the entry of its tokens, to be corrected by what the call used. `leave` must follow.
        """
        await self._at_once.acquire()
        try:
            while (wait := max(self._rests_until - time.monotonic(), self.teacher.rest_seconds)) > 0:
                await asyncio.sleep(wait)
            if self._requests.most:
                await self._requests.take(1)
            return await self._tokens.take(tokens) if self._tokens.most else MinuteEntry(0.0, tokens)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Let another call begin."""
        self._at_once.release()
