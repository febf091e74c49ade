"""Make the calls of one stage: look them up in the call log, keep limits and budget, retry, and log every attempt."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Self

from zephyrctl import plugins
from zephyrctl.contracts import Reply, Sampling, Teacher
from zephyrctl.errors import CallFailed, ZephyrError
from zephyrctl.progress import Progress, Silence
from zephyrctl.recipe.schema import TeacherChoice
from zephyrctl.records import Message
from zephyrctl.teachers.call_log import CallLog, LoggedCall, SettledCall, canonical
from zephyrctl.teachers.limits import Budget, RateLimitedTeacher
from zephyrctl.teachers.prices import Price, Prices

FIRST_WAIT_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
BYTES_PER_TOKEN = 3.0
"""English has about 4.2 bytes per token; a smaller number makes the estimate of a prompt's tokens an upper bound."""
TOKENS_PER_MESSAGE = 8
"""What a chat template adds to each message, at most."""
FIRST_CONTACT_SECONDS = 20.0
"""How long to wait for a server that this command has never reached: its address is probably wrong."""
FREE = Price(input=0, output=0)
KEPT = "replies so far are kept: run the same command to resume"


class Account(Protocol):
    """What receives the counts and costs of a stage's calls: a draft, or the summary of a pilot."""

    metrics: dict[str, Any]
    notes: list[str]
    cost_usd: float


@dataclass(frozen=True)
class PendingCall:
    """A call to be made: what the call log knows of it, and what the teacher needs to answer it."""

    logged: LoggedCall
    messages: Sequence[Message]
    sampling: Sampling


class Calls:
    """Makes the calls of one stage; every call is paid for at most once in a run.

    Used as `async with`, which closes the teachers at its end. Calls to rule-based teachers are passed on: they are
    free, so they are neither limited nor logged.
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
        self._run_path, self._stage = run_path, stage
        self._prices = prices
        self._progress = progress or Silence()
        self._budget = Budget(max_usd)
        self._call_log: CallLog | None = None
        self._teachers: dict[str, RateLimitedTeacher] = {}
        self._in_flight: dict[str, asyncio.Future[Reply]] = {}
        """Calls that are being made, by their keys in the call log."""
        self._stopped: Exception | None = None
        self._attempts = 0
        """Attempts in flight."""
        self._is_ending = False
        self._quiet = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for limited in self._teachers.values():
            await limited.teacher.close()
        if self._call_log:
            self._call_log.close()

    def teacher(self, choice: TeacherChoice) -> Teacher:
        """The teacher that a recipe chooses, whose calls go through here; the same choice gives the same object.

        Raises ZephyrError if there is a budget and the teacher's model has no price.
        """
        key = choice.model_dump_json()
        if key not in self._teachers:
            teacher = plugins.load().teacher(choice.name, choice.options)
            self._teachers[key] = RateLimitedTeacher(teacher, choice.limits, self._price_of(teacher))
            teacher.caller = self
        return self._teachers[key].teacher

    async def reply(self, teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int) -> Reply:
        """The reply to one call: from the call log, from an equal call in flight, or from the teacher.

        Raises CallFailed if this call failed for good, and ZephyrError if the whole stage must stop; the latter is
        raised once the calls in flight have settled.
        """
        if teacher.is_rule_based:
            return await teacher.reply(messages, sampling)
        log = self._open_log()
        limited = self._limited(teacher)
        logged = identify_call(teacher, messages, sampling, sample, limited.identity)
        # An equal call in flight answers both. If whoever makes it is cancelled, the next in line makes it instead.
        while shared := self._in_flight.get(logged.key):
            with contextlib.suppress(asyncio.CancelledError):
                return await asyncio.shield(shared)
            if not shared.cancelled() or _is_cancelled():
                raise asyncio.CancelledError
        if settled := log.reply(logged.key):
            self.counts["calls_from_log"] += 1
            return self._count(settled)
        return await self._share(logged.key, self._ask(log, limited, PendingCall(logged, messages, sampling)))

    async def _share(self, key: str, work: Coroutine[Any, Any, SettledCall]) -> Reply:
        """Make a call, and give its reply or error to everybody who asks for the same one meanwhile."""
        future = self._in_flight[key] = asyncio.get_running_loop().create_future()
        try:
            reply = self._count(await work)
            self.counts["calls"] += 1
            future.set_result(reply)
            return reply
        except asyncio.CancelledError:
            future.cancel()
            raise
        except Exception as error:
            future.set_exception(error)
            future.exception()  # mark it as retrieved: perhaps nobody else waits for it
            if not isinstance(error, CallFailed):
                self._stopped = self._stopped or error
                await self._until_quiet()
            raise
        finally:
            del self._in_flight[key]

    def close_into(self, account: Account) -> None:
        """Add counts, tokens, failures by cause and costs to a draft; nothing if no call was made."""
        if not self._call_log:
            return
        account.metrics["calls"] = self.counts["calls"]
        account.metrics["calls_from_log"] = self.counts["calls_from_log"]
        account.metrics["tokens"] = {name: self.counts[name] for name in ("prompt_tokens", "completion_tokens")}
        if self.failures:
            account.metrics["attempts_failed"] = dict(sorted(self.failures.items()))
        if lost := len(self._call_log.possibly_paid(self._stage)):
            account.metrics["possibly_paid"] = lost
            account.notes.append(f"{lost} calls got no reply and may have been paid: zephyrctl data calls lists them")
        if self.counts["unpriced"]:
            account.notes.append(f"{self.counts['unpriced']} calls have no price and are not in the cost")
        account.cost_usd += self.cost_usd

    def _open_log(self) -> CallLog:
        """The call log, opened at the first call. What earlier commands spent counts towards the budget."""
        if not self._call_log:
            self._call_log = CallLog(self._run_path, self._stage)
            if lost := self._call_log.end_interrupted():
                self._progress.say(
                    f"{lost} calls were in flight when the last command ended and may have been paid: "
                    "zephyrctl data calls lists them"
                )
            # A call that had no price then may have one now.
            unpriced = (self._prices.usd(*group[1:]) or 0.0 for group in self._call_log.unpriced())
            self._budget.spent = self._call_log.spent_usd() + sum(unpriced)
        return self._call_log

    def _price_of(self, teacher: Teacher) -> Price | None:
        if teacher.is_rule_based or teacher.is_free:
            return FREE
        price = self._prices.of(teacher.label)
        if price is None and self._budget.most is not None:
            raise ZephyrError(
                f"--max-usd needs a price for {teacher.label!r}, and there is none",
                f"add it to prices.yaml: `models: {{{teacher.label}: {{input: 2.5, output: 10}}}}` "
                "in US dollars per million tokens, 0 for a server of your own",
            )
        return price

    def _limited(self, teacher: Teacher) -> RateLimitedTeacher:
        return next(limited for limited in self._teachers.values() if limited.teacher is teacher)

    async def _ask(self, log: CallLog, limited: RateLimitedTeacher, call: PendingCall) -> SettledCall:
        """Try until a reply is settled, the attempts are used up, or the stage stops."""
        for attempt in range(1, limited.limits.attempts + 1):
            try:
                settled = await self._attempt(log, limited, call)
            except CallFailed as error:
                self.failures[error.cause] += 1
                if error.is_fatal:
                    raise self._stop(error.problem, error.remedy) from None
                if error.is_unreached and self._is_out_of_reach(limited, error):
                    problem = f"no server answers for {limited.teacher.label!r}: {error.problem}"
                    raise self._stop(problem, error.remedy) from None
                if not error.may_pass or attempt == limited.limits.attempts:
                    raise self._give_up(limited, error, attempt) from None
                if error.wait:
                    limited.rest(error.wait)
                await asyncio.sleep((error.wait or 0.0) + _backoff(attempt))
            else:
                limited.failed_in_a_row, limited.has_answered = 0, True
                return settled
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _is_out_of_reach(self, limited: RateLimitedTeacher, error: CallFailed) -> bool:
        """True if the server was never reached and the first try is too long ago. The user is told at the first."""
        now = time.monotonic()
        if limited.unreached_since is None:
            limited.unreached_since = now
            if not limited.has_answered:
                self._progress.say(f"{error.problem}; trying again for {FIRST_CONTACT_SECONDS:.0f} s")
        return not limited.has_answered and now - limited.unreached_since > FIRST_CONTACT_SECONDS

    async def _attempt(self, log: CallLog, limited: RateLimitedTeacher, call: PendingCall) -> SettledCall:
        """Try once, within the limits and the budget. The reply is in the call log before it is used.

        The order matters: limits first (they may take minutes), then money is reserved at the worst cost, then the
        attempt is committed to the log, and only then is the request sent.
        """
        prompt_tokens = estimate_tokens(call.messages)
        entry = await limited.enter(prompt_tokens + call.sampling.max_tokens)
        self._attempts += 1
        worst = limited.price.usd(prompt_tokens, call.sampling.max_tokens) if limited.price else None
        try:
            await self._reserve(worst or 0.0)
            try:
                number = await log.begin(call.logged, worst)
                began = time.monotonic()
                reply = await self._try(log, number, limited.teacher.reply(call.messages, call.sampling), worst or 0.0)
                if reply.prompt_tokens or reply.completion_tokens:
                    entry.units = reply.prompt_tokens + reply.completion_tokens
                settled = self._settle(limited, reply, prompt_tokens, time.monotonic() - began)
                self._budget.spent += settled.usd or 0.0
            finally:
                self._budget.release(worst or 0.0)
            log.settle(number, call.logged, settled)
            return settled
        finally:
            limited.leave()
            self._attempts -= 1
            if not self._attempts:
                self._quiet.set()

    async def _try(self, log: CallLog, number: int, work: Coroutine[Any, Any, Reply], worst: float) -> Reply:
        """The reply; if there is none, log the cause and whether the attempt may have been paid."""
        try:
            return await work
        except BaseException as error:
            cause, may_be_paid = _explain(error)
            self._budget.spent += worst * may_be_paid
            log.fail(number, cause, may_be_paid)
            raise

    def _settle(self, limited: RateLimitedTeacher, reply: Reply, prompt_tokens: int, seconds: float) -> SettledCall:
        """A reply with its cost, by the price of the model that the server reports, else of the one asked for.

        If the server counts no tokens, their upper estimate is charged.
        """
        price = limited.price if limited.price is FREE else self._prices.of(reply.model) or limited.price
        if reply.prompt_tokens or reply.completion_tokens:
            charged = reply.prompt_tokens, reply.completion_tokens
        else:
            charged = prompt_tokens, _tokens_of(reply.text)
        return SettledCall(
            text=reply.text,
            model=reply.model,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            finish_reason=reply.finish_reason,
            usd=price.usd(*charged) if price else None,
            seconds=seconds,
        )

    def _count(self, settled: SettledCall) -> Reply:
        self.counts["prompt_tokens"] += settled.prompt_tokens
        self.counts["completion_tokens"] += settled.completion_tokens
        self.counts["unpriced"] += settled.usd is None
        self.cost_usd += settled.usd or 0.0
        return reply_of(settled)

    async def _reserve(self, worst: float) -> None:
        """Reserve the worst cost of a call while it is in flight. Raises ZephyrError if the budget has no room."""
        if self._stopped:
            raise self._stopped.with_traceback(None)
        if not await self._budget.reserve(worst):
            raise self._stop(
                f"the budget is used up: {self._budget.spent:.4f} of {self._budget.most:g} US dollars are spent "
                f"or may be, and the next call could cost {worst:.4f}",
                f"raise --max-usd; {KEPT}",
            )

    async def _until_quiet(self) -> None:
        """Wait for the calls in flight: they are paid for, so their replies are kept before the stage stops."""
        if self._attempts:
            if not self._is_ending:
                self._progress.say(f"stopping once {self._attempts} calls in flight have ended")
            self._is_ending = True
            self._quiet.clear()
            await self._quiet.wait()

    def _stop(self, problem: str, remedy: str) -> Exception:
        """The error that ends the stage; no call is begun after it."""
        self._stopped = self._stopped or ZephyrError(problem, remedy)
        return self._stopped

    def _give_up(self, limited: RateLimitedTeacher, error: CallFailed, attempts: int) -> Exception:
        """The error of one call; after too many failures in a row, the error that ends the stage."""
        limited.failed_in_a_row += 1
        label = limited.teacher.label
        if limited.failed_in_a_row >= limited.limits.breaker:
            return self._stop(
                f"{limited.failed_in_a_row} calls to {label!r} failed in a row, the last with: {error.problem}",
                f"{error.remedy}; {KEPT}",
            )
        times = "at once" if attempts == 1 else f"{attempts} times"
        problem = f"{label!r} failed {times}: {error.problem}"
        return CallFailed(problem, error.remedy, cause=error.cause, may_be_paid=error.may_be_paid)


def identify_call(
    teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int, identity: str | None = None
) -> LoggedCall:
    """The call as the call log knows it; the teacher's identity may be given as its canonical JSON."""
    turns = [{"content": message.content, "role": message.role} for message in messages]
    return LoggedCall.of(teacher.name, identity or teacher.identity, teacher.label, turns, _canonical(sampling), sample)


def reply_of(settled: SettledCall) -> Reply:
    """A settled call as its teacher's reply."""
    return Reply(settled.text, settled.model, settled.prompt_tokens, settled.completion_tokens, settled.finish_reason)


@lru_cache(1024)
def _canonical(sampling: Sampling) -> str:
    return canonical(sampling.model_dump())


def estimate_tokens(messages: Sequence[Message]) -> int:
    """An upper estimate of a prompt's tokens."""
    return sum(TOKENS_PER_MESSAGE + _tokens_of(message.content) for message in messages)


def _tokens_of(text: str) -> int:
    return int(len(text.encode(errors="replace")) / BYTES_PER_TOKEN)


def _explain(error: BaseException) -> tuple[str, bool]:
    """The cause under which an attempt without a reply is counted, and whether it may have been paid."""
    if isinstance(error, CallFailed):
        return error.cause, error.may_be_paid
    if isinstance(error, ZephyrError):
        return "the teacher cannot be used", False
    return "given up by the command" if isinstance(error, asyncio.CancelledError) else type(error).__name__, True


def _is_cancelled() -> bool:
    """True if the running task itself is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _backoff(attempt: int) -> float:
    """Seconds: doubled at each attempt, and spread by a quarter so that calls that failed together do not collide."""
    return min(LONGEST_BACKOFF_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1)) * random.uniform(0.75, 1.25)
