"""What judging would still cost before it is paid for: calls, tokens, time and dollars."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from zephyrctl.contracts import Sampling, Teacher
from zephyrctl.errors import CallFailed
from zephyrctl.feedback.dry_run import CHARACTERS_A_TOKEN, Books
from zephyrctl.recipe.schema import Limits
from zephyrctl.records import Message
from zephyrctl.teachers.client import estimate_tokens
from zephyrctl.teachers.costs import FEWEST_CALLS, SECONDS_A_CALL, Forecast, Part, Span, priced, usual
from zephyrctl.teachers.prices import Prices

FEWEST_TOKENS = 10
"""The shortest verdict that is likely: a bracket, or a list of two ranks."""
WORK = "judgments"


class Call(NamedTuple):
    """One call of a judge before it is made."""

    messages: Sequence[Message]
    sampling: Sampling
    sample: int = 0


class Listener:
    """A caller that makes no call and notes what would be asked."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def reply(self, teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int) -> Any:
        """Note the call. Raises CallFailed: there is no reply."""
        self.calls.append(Call(messages, sampling, sample))
        raise CallFailed("this call was not made", "make it", cause="not made")


async def calls_of(judge: Teacher, works: Iterable[Callable[[], Awaitable[Any]]]) -> list[Call]:
    """The calls that a judge would make for some work, of which each asks at most once."""
    judge.caller = listener = Listener()
    for work in works:
        with suppress(CallFailed):
            await work()
    return listener.calls


def forecast(judge: Teacher, limits: Limits, calls: Sequence[Call], books: Books, known_prices: Prices) -> Forecast:
    """What the calls would cost that are not settled in the ledger; a judge by rules makes none."""
    due = [call for call in calls if not books.known(judge, *call)]
    part = _part(judge, due, len(calls) - len(due), books, known_prices)
    return _forecast(len(calls), [part], 1 / limits.concurrency)


def _part(judge: Teacher, due: Sequence[Call], settled: int, books: Books, known_prices: Prices) -> Part:
    past = books.past(judge)
    characters = sum(len(message.content) for case in due for message in case.messages)
    asked = Span(
        low=characters / CHARACTERS_A_TOKEN[0], high=max(characters / CHARACTERS_A_TOKEN[1], _estimate_tokens(due))
    )
    if len(past) >= FEWEST_CALLS:
        each, seconds, basis = usual(past)
        said = each.times(len(due))
    else:
        said = Span(low=FEWEST_TOKENS * len(due), high=sum(case.sampling.max_tokens for case in due))
        seconds = Span(low=SECONDS_A_CALL[0], high=SECONDS_A_CALL[1])
        basis = f"priors: 3 to 5 characters a token, {FEWEST_TOKENS} tokens a verdict to the most"
    return Part(
        teacher=judge.label,
        work=WORK,
        settled=settled,
        due=len(due),
        calls=Span(low=len(due), high=len(due)),
        prompt_tokens=asked,
        completion_tokens=said,
        usd=Span(low=0, high=0) if judge.is_free else priced(known_prices, judge.label, asked, said),
        seconds_a_call=seconds,
        basis=basis,
    )


def _estimate_tokens(due: Iterable[Call]) -> int:
    return sum(estimate_tokens(case.messages) for case in due)


def _forecast(cases: int, parts: Sequence[Part], share: float) -> Forecast:
    due = [part for part in parts if part.due]
    nothing = Span(low=0, high=0)
    return Forecast(
        of="judgments",
        prompts=cases,
        prompts_settled=cases - sum(part.due for part in due),
        parts=list(parts),
        calls=due[0].calls if due else nothing,
        tokens=_sum(due[0].prompt_tokens, due[0].completion_tokens) if due else nothing,
        usd=due[0].usd if due else nothing,
        no_price=[part.teacher for part in due if part.usd is None],
        seconds=due[0].seconds_a_call.times(due[0].due * share) if due else nothing,
    )


def _sum(one: Span, other: Span) -> Span:
    return Span(low=one.low + other.low, high=one.high + other.high)
