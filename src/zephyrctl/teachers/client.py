"""The calls of one stage: looked up in the ledger, held to limits and budget, tried again, and written down."""

import asyncio
import contextlib
import random
import time
from collections import Counter, deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Self

from zephyrctl import plugins
from zephyrctl.contracts import Reply, Sampling, Teacher
from zephyrctl.errors import CallFailed, ZephyrError
from zephyrctl.progress import Progress, Silence
from zephyrctl.recipe.schema import Limits, TeacherChoice
from zephyrctl.records import Message
from zephyrctl.teachers.call_log import Ledger, Request, Settled, canonical
from zephyrctl.teachers.prices import Price, Prices

FIRST_WAIT_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
BYTES_A_TOKEN = 3.0
"""English has about 4.2 bytes a token; fewer make the estimate of a prompt's tokens an upper one."""
TOKENS_A_MESSAGE = 8
LONGEST_NAP_SECONDS = 1.0
FIRST_CONTACT_SECONDS = 20.0
"""How long a server is waited for that this command has never reached: more likely its address is wrong."""
FREE = Price(input=0, output=0)
KEPT = "what is answered is kept: the same command goes on from there"


class Account(Protocol):
    """What takes the figures of a stage's calls: a draft."""

    metrics: dict[str, Any]
    notes: list[str]
    cost_usd: float


class Calls:
    """Makes the calls of one stage; every call is paid for at most once in a run.

    Used as `async with`; at its end teachers are closed. Teachers whose replies are rules pass through untouched.
    """

    def __init__(
        self,
        run_path: Path,
        stage: str,
        prices: Prices,
        max_usd: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.cost_usd = 0.0
        self._where = run_path, stage
        self._prices = prices
        self._progress = progress or Silence()
        self._budget = Budget(max_usd)
        self._opened: Ledger | None = None
        self._desks: dict[str, Desk] = {}
        self._under_way: dict[str, asyncio.Future[Reply]] = {}
        self._stopped: Exception | None = None
        self._attempts = 0
        self._is_ending = False
        self._quiet = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for desk in self._desks.values():
            await desk.teacher.close()
        if self._opened:
            self._opened.close()

    def teacher(self, choice: TeacherChoice) -> Teacher:
        """The teacher of a choice, which asks through here; the same choice gives the same teacher.

        Raises ZephyrError where there is a budget and the teacher's model has no price.
        """
        key = choice.model_dump_json()
        if key not in self._desks:
            teacher = plugins.load().teacher(choice.name, choice.options)
            self._desks[key] = Desk(teacher, choice.limits, self._price_of(teacher))
            teacher.caller = self
        return self._desks[key].teacher

    async def reply(self, teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int) -> Reply:
        """The reply to one call: from the ledger, from an equal call under way, or asked for now.

        Raises CallFailed where this call failed for good, and ZephyrError where the whole stage must stop; that comes
        once the calls under way have settled.
        """
        if teacher.is_rule_based:
            return await teacher.reply(messages, sampling)
        ledger = self._ledger()
        desk = self._desk(teacher)
        request = request_of(teacher, messages, sampling, sample, desk.identity)
        while shared := self._under_way.get(request.key):
            with contextlib.suppress(asyncio.CancelledError):
                return await asyncio.shield(shared)
            if not shared.cancelled() or _is_cancelled():
                raise asyncio.CancelledError
        if settled := ledger.reply(request.key):
            self.counts["calls_from_ledger"] += 1
            return self._count(settled)
        return await self._share(request.key, self._ask(ledger, desk, request, messages, sampling))

    async def _share(self, key: str, call: Coroutine[Any, Any, Settled]) -> Reply:
        """What a call brings, for all who ask the same while it is under way."""
        future = self._under_way[key] = asyncio.get_running_loop().create_future()
        try:
            reply = self._count(await call)
            self.counts["calls"] += 1
            future.set_result(reply)
            return reply
        except asyncio.CancelledError:
            future.cancel()
            raise
        except Exception as error:
            future.set_exception(error)
            future.exception()  # seen, whether or not anybody else waits for it
            if not isinstance(error, CallFailed):
                self._stopped = self._stopped or error
                await self._until_quiet()
            raise
        finally:
            del self._under_way[key]

    def close_into(self, account: Account) -> None:
        """Put counts, tokens, failures by cause and costs into a draft."""
        if not self._opened:
            return
        account.metrics["calls"] = self.counts["calls"]
        account.metrics["calls_from_ledger"] = self.counts["calls_from_ledger"]
        account.metrics["tokens"] = {name: self.counts[name] for name in ("prompt_tokens", "completion_tokens")}
        if self.failures:
            account.metrics["attempts_failed"] = dict(sorted(self.failures.items()))
        if lost := len(self._opened.possibly_paid(self._opened.stage)):
            account.metrics["possibly_paid"] = lost
            account.notes.append(
                f"{lost} calls brought nothing and may have been paid: zephyrctl data calls lists them"
            )
        if self.counts["unpriced"]:
            account.notes.append(f"{self.counts['unpriced']} calls have no price and are not in the cost")
        account.cost_usd += self.cost_usd

    def _ledger(self) -> Ledger:
        if not self._opened:
            self._opened = Ledger(*self._where)
            if lost := self._opened.end_interrupted():
                self._progress.say(
                    f"{lost} calls were under way when the last command ended and may have been paid: "
                    "zephyrctl data calls lists them"
                )
            unpriced = (self._prices.usd(*group[1:]) or 0.0 for group in self._opened.unpriced())
            self._budget.spent = self._opened.spent_usd() + sum(unpriced)
        return self._opened

    def _price_of(self, teacher: Teacher) -> Price | None:
        if teacher.is_rule_based or teacher.is_free:
            return FREE
        price = self._prices.of(teacher.label)
        if price is None and self._budget.most is not None:
            raise ZephyrError(
                f"--max-usd needs a price for {teacher.label!r}, and there is none",
                f"put it into prices.yaml: `models: {{{teacher.label}: {{input: 2.5, output: 10}}}}` "
                "in US dollars per million tokens, 0 for a server of your own",
            )
        return price

    def _desk(self, teacher: Teacher) -> "Desk":
        return next(desk for desk in self._desks.values() if desk.teacher is teacher)

    async def _ask(
        self, ledger: Ledger, desk: "Desk", request: Request, messages: Sequence[Message], sampling: Sampling
    ) -> Settled:
        """Try until a reply settles, the tries are used up, or all stops."""
        for attempt in range(1, desk.limits.attempts + 1):
            try:
                settled = await self._attempt(ledger, desk, request, messages, sampling)
            except CallFailed as error:
                self.failures[error.cause] += 1
                if error.is_fatal:
                    raise self._stop(error.problem, error.remedy) from None
                if error.is_unreached and self._is_out_of_reach(desk, error):
                    raise self._stop(
                        f"nobody answers for {desk.teacher.label!r}: {error.problem}", error.remedy
                    ) from None
                if not error.may_pass or attempt == desk.limits.attempts:
                    raise self._give_up(desk, error, attempt) from None
                if error.wait:
                    desk.rest(error.wait)
                await asyncio.sleep((error.wait or 0.0) + _backoff(attempt))
            else:
                desk.failed_in_a_row, desk.has_answered = 0, True
                return settled
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _is_out_of_reach(self, desk: "Desk", error: CallFailed) -> bool:
        """True where nobody has answered since the first try, and that is a while ago. The user is told at once."""
        now = time.monotonic()
        if desk.unreached_since is None:
            desk.unreached_since = now
            if not desk.has_answered:
                self._progress.say(f"{error.problem}; trying again for {FIRST_CONTACT_SECONDS:.0f} s")
        return not desk.has_answered and now - desk.unreached_since > FIRST_CONTACT_SECONDS

    async def _attempt(
        self, ledger: Ledger, desk: "Desk", request: Request, messages: Sequence[Message], sampling: Sampling
    ) -> Settled:
        """One try within the limits and the budget; the reply is on the disk before it is used."""
        prompt_tokens = most_tokens(messages)
        entry = await desk.enter(prompt_tokens + sampling.max_tokens)
        self._attempts += 1
        worst = desk.price.usd(prompt_tokens, sampling.max_tokens) if desk.price else None
        try:
            await self._reserve(worst or 0.0)
            try:
                number = await ledger.begin(request, worst)
                began = time.monotonic()
                reply = await self._try(ledger, number, desk.teacher.reply(messages, sampling), worst or 0.0)
                if reply.prompt_tokens or reply.completion_tokens:
                    entry[1] = reply.prompt_tokens + reply.completion_tokens
                settled = self._settled(desk, reply, prompt_tokens, time.monotonic() - began)
                self._budget.spent += settled.usd or 0.0
            finally:
                self._budget.release(worst or 0.0)
            ledger.settle(number, request, settled)
            return settled
        finally:
            desk.leave()
            self._attempts -= 1
            if not self._attempts:
                self._quiet.set()

    async def _try(self, ledger: Ledger, number: int, reply: Coroutine[Any, Any, Reply], worst: float) -> Reply:
        """The reply; where there is none, that is written down with its cause, and whether it may have been paid."""
        try:
            return await reply
        except BaseException as error:
            cause, may_be_paid = _outcome(error)
            self._budget.spent += worst * may_be_paid
            ledger.fail(number, cause, may_be_paid)
            raise

    def _settled(self, desk: "Desk", reply: Reply, prompt_tokens: int, seconds: float) -> Settled:
        """By the model that the server reported where it has a price, else by the one asked for.

        Where the server counts no tokens, their upper estimate is paid.
        """
        price = desk.price if desk.price is FREE else self._prices.of(reply.model) or desk.price
        is_counted = reply.prompt_tokens or reply.completion_tokens
        tokens = (reply.prompt_tokens, reply.completion_tokens) if is_counted else (prompt_tokens, _tokens(reply.text))
        return Settled(
            text=reply.text,
            model=reply.model,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            finish_reason=reply.finish_reason,
            usd=price.usd(*tokens) if price else None,
            seconds=seconds,
        )

    def _count(self, settled: Settled) -> Reply:
        self.counts["prompt_tokens"] += settled.prompt_tokens
        self.counts["completion_tokens"] += settled.completion_tokens
        self.counts["unpriced"] += settled.usd is None
        self.cost_usd += settled.usd or 0.0
        return reply_of(settled)

    async def _reserve(self, worst: float) -> None:
        """Hold the worst cost of a call while it is under way. Raises ZephyrError where the budget has no room."""
        if self._stopped:
            raise self._stopped.with_traceback(None)
        if not await self._budget.reserve(worst):
            raise self._stop(
                f"the budget ends here: {self._budget.spent:.4f} of {self._budget.most:g} US dollars are spent "
                f"or may be, and the next call could cost {worst:.4f}",
                f"raise --max-usd; {KEPT}",
            )

    async def _until_quiet(self) -> None:
        """Calls under way are paid for: they may settle before all stops."""
        if self._attempts:
            if not self._is_ending:
                self._progress.say(f"stopping: {self._attempts} calls under way may still settle")
            self._is_ending = True
            self._quiet.clear()
            await self._quiet.wait()

    def _stop(self, problem: str, remedy: str) -> Exception:
        """From here on no call is begun."""
        self._stopped = self._stopped or ZephyrError(problem, remedy)
        return self._stopped

    def _give_up(self, desk: "Desk", error: CallFailed, attempts: int) -> Exception:
        """The failure of one call; with too many in a row, the end of the stage."""
        desk.failed_in_a_row += 1
        tries = "at once" if attempts == 1 else f"{attempts} times"
        if desk.failed_in_a_row >= desk.limits.breaker:
            return self._stop(
                f"{desk.failed_in_a_row} calls to {desk.teacher.label!r} failed one after another, the last with: "
                f"{error.problem}",
                f"{error.remedy}; {KEPT}",
            )
        problem = f"{desk.teacher.label!r} failed {tries}: {error.problem}"
        return CallFailed(problem, error.remedy, cause=error.cause, may_be_paid=error.may_be_paid)


def request_of(
    teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int, identity: str | None = None
) -> Request:
    """The call as the ledger knows it; the teacher's identity may be given as its canonical JSON."""
    said = [{"content": message.content, "role": message.role} for message in messages]
    return Request.of(teacher.name, identity or teacher.identity, teacher.label, said, _drawn(sampling), sample)


def reply_of(settled: Settled) -> Reply:
    """A settled call as its teacher's reply."""
    return Reply(settled.text, settled.model, settled.prompt_tokens, settled.completion_tokens, settled.finish_reason)


@lru_cache(1024)
def _drawn(sampling: Sampling) -> str:
    return canonical(sampling.model_dump())


def most_tokens(messages: Sequence[Message]) -> int:
    """An upper estimate of a prompt's tokens."""
    return sum(TOKENS_A_MESSAGE + _tokens(message.content) for message in messages)


def _tokens(text: str) -> int:
    return int(len(text.encode(errors="replace")) / BYTES_A_TOKEN)


def _outcome(error: BaseException) -> tuple[str, bool]:
    """Under which words an attempt without a reply is counted, and whether it may have been paid."""
    if isinstance(error, CallFailed):
        return error.cause, error.may_be_paid
    if isinstance(error, ZephyrError):
        return "the teacher cannot be used", False
    return "given up by the command" if isinstance(error, asyncio.CancelledError) else type(error).__name__, True


def _is_cancelled() -> bool:
    """True where somebody cancels the task at work."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Budget:
    """US dollars that may be spent: what is, and what calls under way may still cost."""

    def __init__(self, most: float | None) -> None:
        self.most = most
        self.spent = 0.0
        self._reserved = 0.0
        self._changed = asyncio.Event()

    async def reserve(self, worst: float) -> bool:
        """Wait until the worst cost fits beside the calls under way; False where it cannot fit at all."""
        if self.most is not None:
            while self.spent + self._reserved + worst > self.most:
                if not self._reserved:
                    return False
                self._changed.clear()
                await self._changed.wait()
        self._reserved += worst
        return True

    def release(self, worst: float) -> None:
        """A call has ended."""
        self._reserved = max(0.0, self._reserved - worst) if self._reserved > 1e-12 + worst else 0.0
        self._changed.set()


@dataclass
class Minute:
    """At most so many units in any minute."""

    most: int | None
    """None for any number."""
    entries: deque[list[float]] = field(default_factory=deque)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def take(self, units: float) -> list[float]:
        """Wait for room; more units than a minute has are let through alone. Returns [when, units]."""
        entry = [time.monotonic(), units]
        if self.most is None:
            return entry
        async with self.lock:
            while self._is_full(units):
                oldest = self.entries[0][0] + 60 - time.monotonic()
                await asyncio.sleep(max(0.001, min(LONGEST_NAP_SECONDS, oldest)))  # estimates may be corrected
            entry[0] = time.monotonic()
            self.entries.append(entry)
        return entry

    def _is_full(self, units: float) -> bool:
        while self.entries and self.entries[0][0] <= time.monotonic() - 60:
            self.entries.popleft()
        return bool(self.entries) and sum(used for _, used in self.entries) + units > (self.most or 0)


class Desk:
    """One teacher at work: its limits, its price, and how many calls failed in a row."""

    def __init__(self, teacher: Teacher, limits: Limits, price: Price | None) -> None:
        self.teacher = teacher
        self.limits = limits
        self.price = price
        self.identity = "" if teacher.is_rule_based else canonical(teacher.identity)
        self.failed_in_a_row = 0
        self.has_answered = False
        self.unreached_since: float | None = None
        self._places = Places(limits.concurrency)
        self._requests = Minute(limits.requests_per_minute)
        self._tokens = Minute(limits.tokens_per_minute)
        self._rests_until = 0.0

    def rest(self, seconds: float) -> None:
        """Begin no call for so long, as the server asks."""
        self._rests_until = max(self._rests_until, time.monotonic() + seconds)

    async def enter(self, tokens: int) -> list[float]:
        """Wait for a place among the calls under way, for the rest of the server and for room in the minute.

        Returns [when, tokens] of the call, where the tokens may be corrected; `leave` must follow.
        """
        await self._places.take()
        try:
            while (wait := max(self._rests_until - time.monotonic(), self.teacher.rest_seconds)) > 0:
                await asyncio.sleep(wait)
            if self._requests.most:
                await self._requests.take(1)
            return await self._tokens.take(tokens) if self._tokens.most else [0.0, tokens]
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Make place for another call."""
        self._places.give()


class Places:
    """So many at once, first come, first served. (asyncio.Semaphore takes 15 us a turn, this one 1.)"""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Wait for a place."""
        if self._free:
            self._free -= 1
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():
                self.give()  # it came in the same moment
            raise

    def give(self) -> None:
        """Hand a place to who has waited longest."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return
        self._free += 1


def _backoff(attempt: int) -> float:
    """Twice as long each time, and spread, so that calls which failed together do not come back together."""
    return min(LONGEST_BACKOFF_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1)) * random.uniform(0.75, 1.25)
