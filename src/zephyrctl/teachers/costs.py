"""Forecast what calls will cost before they are paid for: calls, tokens, time and dollars, each with an interval.

The call log says which calls are settled. Settled work of the same kind (a pilot's, or an earlier run's) is the sample
from which the rest is forecast; without it, wide priors are used and named.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from zephyrctl.contracts import Reply, Sampling, Teacher
from zephyrctl.errors import CallFailed
from zephyrctl.recipe.schema import Limits
from zephyrctl.records import Message
from zephyrctl.teachers.call_log import FILE, CallLog
from zephyrctl.teachers.client import estimate_tokens, identify_call, reply_of
from zephyrctl.teachers.prices import Prices

CHARACTERS_PER_TOKEN = (5.0, 3.0)
"""English has about four: more in plain prose, fewer in code. The prior for prompts, as (low cost, high cost)."""
FEWEST_SAMPLES = 5
"""Settled prompts from which others are forecast; fewer do not show how prompts vary."""
FEWEST_CALLS = 20
"""Settled calls of a teacher from which its other calls are forecast."""
RESAMPLES = 1000
SECONDS_PER_CALL = (1.0, 20.0)
SHORTEST_VERDICT_TOKENS = 10
"""A score in brackets, or a list of two ranks."""
JUDGMENTS = "judgments"


class Span(BaseModel):
    """An interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float

    def times(self, factor: float) -> "Span":
        """Both ends multiplied by a factor."""
        return Span(low=self.low * factor, high=self.high * factor)


NOTHING = Span(low=0, high=0)


def add_spans(spans: Iterable[Span]) -> Span:
    """The sum of intervals as if all erred in the same direction: wider than needed, and never too narrow."""
    listed = list(spans)
    return Span(low=sum(span.low for span in listed), high=sum(span.high for span in listed))


class WorkForecast(BaseModel):
    """The calls to one teacher for one kind of work that are still to be made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    work: str = Field(description="answers, ratings, critiques or judgments")
    settled: int = Field(description="calls that are in the call log already: free")
    due: int = Field(description="calls to be made, without those that are repeated")
    calls: Span = Field(description="calls to be made, with those that are repeated because a reply cannot be read")
    prompt_tokens: Span
    completion_tokens: Span
    usd: Span | None = Field(description="none if the teacher has no price")
    seconds_per_call: Span
    basis: str = Field(description="what the intervals are based on")

    def tokens(self) -> Span:
        """Prompt and completion tokens."""
        return add_spans((self.prompt_tokens, self.completion_tokens))


class Forecast(BaseModel):
    """What is still to be paid for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str = Field(default="prompts", description="what `prompts` counts")
    prompts: int
    prompts_settled: int = Field(description="prompts whose calls are all settled")
    parts: list[WorkForecast]
    calls: Span
    tokens: Span
    usd: Span | None = Field(description="for the teachers that have a price; none if no teacher has one")
    no_price: list[str] = Field(description="teachers whose calls are not in the sum of dollars")
    seconds: Span


class PastReply(NamedTuple):
    """A settled call: its reply, and the seconds it took."""

    reply: Reply
    seconds: float


class CallHistory:
    """What a call log tells a forecast. This class itself is the history of a run that has made no call."""

    def find(self, teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int) -> PastReply | None:
        """The settled call, or None."""
        return None

    def sizes(self, teacher: Teacher) -> Sequence[tuple[int, float]]:
        """(completion tokens, seconds) of each settled call of a teacher, for any kind of work."""
        return ()


class LoggedHistory(CallHistory):
    """The history in a call log."""

    def __init__(self, log: CallLog) -> None:
        self._log = log

    def find(self, teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int) -> PastReply | None:
        """The settled call, or None."""
        settled = self._log.reply(identify_call(teacher, messages, sampling, sample).key)
        return PastReply(reply_of(settled), settled.seconds) if settled else None

    def sizes(self, teacher: Teacher) -> Sequence[tuple[int, float]]:
        """(completion tokens, seconds) of each settled call of a teacher, for any kind of work."""
        history = self._log.history(teacher.name, teacher.identity)
        return [(completion_tokens, seconds) for _, completion_tokens, seconds, _ in history]


@contextmanager
def open_history(run_path: Path) -> Iterator[CallHistory]:
    """The history of a run. A run without a call log gets none."""
    if not (run_path / FILE).is_file():
        yield CallHistory()
        return
    with CallLog(run_path) as log:
        yield LoggedHistory(log)


@dataclass
class CallUsage:
    """What the settled calls for one prompt used."""

    first: int = 0
    """Calls without those that were repeated because a reply could not be read."""
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def add(self, past: PastReply, is_first: bool) -> None:
        """Count another call."""
        self.first += is_first
        self.calls += 1
        self.prompt_tokens += past.reply.prompt_tokens
        self.completion_tokens += past.reply.completion_tokens
        self.seconds += past.seconds


@dataclass(frozen=True)
class WorkEstimate:
    """Intervals for the calls that are due, and what they are based on."""

    calls: Span
    prompt_tokens: Span
    completion_tokens: Span
    seconds_per_call: Span
    basis: str

    def priced(self, prices: Prices, model: str) -> Span | None:
        """The cost in US dollars; None if the model has no price."""
        low = prices.usd(model, round(self.prompt_tokens.low), round(self.completion_tokens.low))
        high = prices.usd(model, round(self.prompt_tokens.high), round(self.completion_tokens.high))
        return None if low is None or high is None else Span(low=low, high=high)


@dataclass(frozen=True)
class ReplySize:
    """Intervals for one reply of a teacher, and what they are based on."""

    tokens: Span
    seconds: Span
    basis: str


def measure_replies(sizes: Sequence[tuple[int, float]]) -> ReplySize:
    """The middle 80 % of (completion tokens, seconds) of a teacher's settled calls."""
    tokens, seconds = (sorted(values) for values in zip(*sizes, strict=True))
    low, high = len(sizes) // 10, -1 - len(sizes) // 10
    return ReplySize(
        Span(low=tokens[low], high=tokens[high]),
        Span(low=seconds[low], high=seconds[high]),
        f"replies as in {len(sizes)} settled calls of this teacher",
    )


def estimate_from_sample(sample: Sequence[CallUsage], due: int, prompts: int, seed: str) -> WorkEstimate:
    """95 % intervals for `due` calls of `prompts` prompts, from prompts whose calls are settled.

    A percentile bootstrap over prompts (Efron 1979). Each resample has a mean use per due call; to it is added how much
    the sum over the remaining prompts varies about that mean.
    """
    import numpy as np  # takes 0.1 s, which only a forecast needs

    rng = np.random.default_rng(int(hashlib.sha256(seed.encode()).hexdigest()[:8], 16))
    drawn = rng.integers(0, len(sample), (RESAMPLES, len(sample)))  # each row: one resample, as indices of prompts
    first = np.asarray([usage.first for usage in sample], dtype=float)
    noise = rng.standard_normal(RESAMPLES)

    def interval(values: Sequence[float], least: float = 0.0) -> Span:
        used = np.asarray(values, dtype=float)
        # The mean: use per due call of each resample, times the calls that are due.
        sums = due * used[drawn].sum(axis=1) / np.maximum(first[drawn].sum(axis=1), 1)
        # The spread of a sum over n prompts is sqrt(n) times the spread of one. `scale` is below 1 if the remaining
        # prompts are partly settled and so need fewer calls each than those of the sample.
        scale = due / max(prompts * first.mean(), 1e-9)
        sums += noise * used[drawn].std(axis=1) * scale * prompts**0.5
        low, high = np.quantile(sums, [0.025, 0.975])
        return Span(low=max(float(low), least), high=max(float(high), least))

    seconds = interval([usage.seconds for usage in sample])
    return WorkEstimate(
        calls=interval([usage.calls for usage in sample], least=due),
        prompt_tokens=interval([usage.prompt_tokens for usage in sample]),
        completion_tokens=interval([usage.completion_tokens for usage in sample]),
        seconds_per_call=seconds.times(1 / max(due, 1)),
        basis=f"{len(sample)} settled prompts",
    )


class JudgingCall(NamedTuple):
    """One call of a judge before it is made."""

    messages: Sequence[Message]
    sampling: Sampling
    sample: int = 0


class CallRecorder:
    """A caller that makes no call and records what would be asked."""

    def __init__(self) -> None:
        self.calls: list[JudgingCall] = []

    async def reply(self, teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int) -> Reply:
        """Record the call. Raises CallFailed, as there is no reply."""
        self.calls.append(JudgingCall(messages, sampling, sample))
        raise CallFailed("this call was not made", "make it", cause="not made")


async def record_calls(judge: Teacher, works: Iterable[Callable[[], Awaitable[object]]]) -> list[JudgingCall]:
    """The first call that each piece of a judge's work would make."""
    judge.caller = recorder = CallRecorder()
    for work in works:
        with suppress(CallFailed):
            await work()
    return recorder.calls


def forecast_judging(
    judge: Teacher, limits: Limits, calls: Sequence[JudgingCall], history: CallHistory, prices: Prices
) -> Forecast:
    """What the calls that are not in the call log would cost."""
    due = [call for call in calls if not history.find(judge, *call)]
    estimate = _estimate_judging(due, history.sizes(judge))
    usd = NOTHING if judge.is_free else estimate.priced(prices, judge.label)
    part = WorkForecast(
        teacher=judge.label,
        work=JUDGMENTS,
        settled=len(calls) - len(due),
        due=len(due),
        calls=estimate.calls,
        prompt_tokens=estimate.prompt_tokens,
        completion_tokens=estimate.completion_tokens,
        usd=usd,
        seconds_per_call=estimate.seconds_per_call,
        basis=estimate.basis,
    )
    return Forecast(
        of=JUDGMENTS,
        prompts=len(calls),
        prompts_settled=len(calls) - len(due),
        parts=[part],
        calls=part.calls,
        tokens=part.tokens() if due else NOTHING,
        usd=part.usd if due else NOTHING,
        no_price=[part.teacher] if due and part.usd is None else [],
        seconds=part.seconds_per_call.times(len(due) / limits.concurrency) if due else NOTHING,
    )


def _estimate_judging(due: Sequence[JudgingCall], sizes: Sequence[tuple[int, float]]) -> WorkEstimate:
    characters = sum(len(message.content) for call in due for message in call.messages)
    few, many = CHARACTERS_PER_TOKEN
    upper = sum(estimate_tokens(call.messages) for call in due)
    if len(sizes) >= FEWEST_CALLS:
        reply = measure_replies(sizes)
        completion, seconds, basis = reply.tokens.times(len(due)), reply.seconds, reply.basis
    else:
        completion = Span(low=SHORTEST_VERDICT_TOKENS * len(due), high=sum(call.sampling.max_tokens for call in due))
        seconds = Span(low=SECONDS_PER_CALL[0], high=SECONDS_PER_CALL[1])
        basis = f"priors: 3 to 5 characters per token, verdicts of {SHORTEST_VERDICT_TOKENS} tokens to the most allowed"
    return WorkEstimate(
        calls=Span(low=len(due), high=len(due)),
        prompt_tokens=Span(low=characters / few, high=max(characters / many, upper)),
        completion_tokens=completion,
        seconds_per_call=seconds,
        basis=basis,
    )


def lines(told: Mapping[str, object]) -> Iterator[str]:
    """A forecast as lines to print."""
    forecast = Forecast.model_validate(told)
    for part in forecast.parts:
        yield f"  {part.teacher}: {_describe(part)}"
    if not forecast.calls.high:
        yield f"  nothing left to pay for: all {forecast.prompts} {forecast.of} are settled"
        return
    usd = "no price" if forecast.usd is None else _dollars(forecast.usd)
    unpriced = ""
    if forecast.usd and forecast.no_price:
        unpriced = f" without {', '.join(forecast.no_price)}, which has no price"
    left = forecast.prompts - forecast.prompts_settled
    yield (
        f"  total for {left} of {forecast.prompts} {forecast.of}: {_counted(forecast.calls)} calls, "
        f"{_counted(forecast.tokens)} tokens, {_time(forecast.seconds)}, {usd}{unpriced}"
    )


def _describe(part: WorkForecast) -> str:
    if not part.due:
        return f"all {part.settled} calls for {part.work} are settled"
    tokens = f", {_counted(part.tokens())} tokens" if part.prompt_tokens.high else ""
    settled = f", {part.settled} already settled" if part.settled else ""
    usd = "no price" if part.usd is None else _dollars(part.usd)
    return f"{_counted(part.calls)} calls for {part.work}{tokens}, {usd}{settled} ({part.basis})"


def _counted(span: Span) -> str:
    return _range(f"{span.low:,.0f}", f"{span.high:,.0f}")


def _dollars(span: Span) -> str:
    return _range(_dollar(span.low), _dollar(span.high))


def _dollar(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 0.1 or not amount else f"${amount:.2g}"


def _time(span: Span) -> str:
    return _range(_duration(span.low), _duration(span.high))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
