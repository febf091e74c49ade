"""What a collection would still cost before it is paid for: calls, tokens, time and dollars, each with an interval.

The very calls of the stage are gone through against the ledger, and none is made. Prompts whose calls are all settled
(those of a pilot, or of an earlier run) are the sample from which the rest is forecast; without such, by priors.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from zephyrctl.contracts import Teacher
from zephyrctl.feedback.annotators import ANSWERS, CRITIQUES, RATINGS, Crew, check
from zephyrctl.feedback.completions import Intake
from zephyrctl.feedback.dry_run import FEWEST_TOKENS, Books, Key, Looker, Past, Sums, Used, idle_crew, look_at_all
from zephyrctl.recipe.schema import Limits
from zephyrctl.stages import Inputs
from zephyrctl.teachers import prices
from zephyrctl.teachers.prices import Prices

FEWEST_ROWS = 5
"""Settled prompts from which others are forecast; of fewer nobody can say how they vary."""
FEWEST_CALLS = 20
RESAMPLES = 1000
MOST_TOKENS = {RATINGS: 160, CRITIQUES: 512}
"""The longest replies that are asked for; of ratings, for each answer."""
ASKED_AGAIN = 0.1
"""The prior for the most ratings and critiques that have to be asked for again."""
SECONDS_A_CALL = (1.0, 20.0)
SECONDS_BY_RULES = (0.0001, 0.01)


class Span(BaseModel):
    """An interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float

    def times(self, factor: float) -> "Span":
        """Both ends as many times."""
        return Span(low=self.low * factor, high=self.high * factor)


def total(spans: Iterable[Span]) -> Span:
    """The sum of intervals as if all erred the same way: wider than it need be, and never narrower."""
    given = list(spans)
    return Span(low=sum(span.low for span in given), high=sum(span.high for span in given))


class Part(BaseModel):
    """The calls to one teacher for one kind of work that are still to be made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    work: str = Field(description="answers, ratings or critiques")
    settled: int = Field(description="calls that the ledger holds already: free")
    due: int = Field(description="calls to be made, none of them asked again")
    calls: Span = Field(description="calls to be made, with those asked again")
    prompt_tokens: Span
    completion_tokens: Span
    usd: Span | None = Field(description="none where the teacher has no price")
    seconds_a_call: Span
    basis: str = Field(description="what the intervals rest on")


class Forecast(BaseModel):
    """What is still to be paid for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str = Field(default="prompts", description="what is gone through")
    prompts: int
    prompts_settled: int = Field(description="prompts of which every call is settled")
    parts: list[Part]
    calls: Span
    tokens: Span
    usd: Span | None = Field(description="of the teachers that have a price; none where no teacher has one")
    no_price: list[str] = Field(description="teachers whose calls are in no sum of dollars")
    seconds: Span


def forecast(intake: Intake, inputs: Inputs, books: Books) -> Forecast:
    """What the collection would still cost. Raises ZephyrError where the stage itself could not start."""
    check(intake)
    looker = Looker(books.known)
    crew = idle_crew(intake.recipe, looker)
    sums = asyncio.run(look_at_all(crew, intake.rows(inputs), looker))
    return _forecast(sums, crew, looker.models, prices.load(intake.recipe.prices), books.past)


def _forecast(sums: Sums, crew: Crew, models: Mapping[str, str], known_prices: Prices, past: Past) -> Forecast:
    parts = [_part(key, sums, crew, models.get(key.teacher, key.teacher), known_prices, past) for key in sums.met()]
    due = [part for part in parts if part.due]
    priced = [part.usd for part in due if part.usd]
    no_price = list(dict.fromkeys(part.teacher for part in due if part.usd is None))
    return Forecast(
        prompts=sums.prompts,
        prompts_settled=sums.complete,
        parts=parts,
        calls=total(part.calls for part in parts),
        tokens=total(span for part in parts for span in (part.prompt_tokens, part.completion_tokens)),
        usd=total(priced) if priced or not no_price else None,
        no_price=no_price,
        seconds=_seconds(due, sums.prompts - sums.complete, crew),
    )


def _part(key: Key, sums: Sums, crew: Crew, model: str, known_prices: Prices, past: Past) -> Part:
    calls, asked, said, seconds, basis = _spans(key, sums, crew, past)
    is_free = _is_by_rules(key, crew) or _teacher(key, crew).is_free
    return Part(
        teacher=key.teacher,
        work=key.work,
        settled=sums.settled[key],
        due=sums.due[key],
        calls=calls,
        prompt_tokens=asked,
        completion_tokens=said,
        usd=NOTHING if is_free else priced(known_prices, model, asked, said),
        seconds_a_call=seconds,
        basis=basis,
    )


Spans = tuple[Span, Span, Span, Span, str]
"""Calls, prompt tokens, completion tokens, seconds a call, and what they rest on."""
NOTHING = Span(low=0, high=0)


def _spans(key: Key, sums: Sums, crew: Crew, past: Past) -> Spans:
    if _is_by_rules(key, crew):
        return _by_rules(sums.due[key])
    sample = sums.sample.get(key, [])
    if len(sample) >= FEWEST_ROWS:
        return from_sample(sample, sums.due[key], sums.rows_due[key], key)
    return _from_priors(key, sums, crew, past(_teacher(key, crew)))


def _teacher(key: Key, crew: Crew) -> Teacher:
    return next(teacher for teacher in (*crew.pool, crew.rater) if teacher.label == key.teacher)


def _is_by_rules(key: Key, crew: Crew) -> bool:
    return _teacher(key, crew).is_rule_based


def _by_rules(due: int) -> Spans:
    low, high = SECONDS_BY_RULES
    return Span(low=due, high=due), NOTHING, NOTHING, Span(low=low, high=high), "rules: free"


def _from_priors(key: Key, sums: Sums, crew: Crew, past: Sequence[tuple[int, float]]) -> Spans:
    """Calls once or a tenth of them again; prompts by their characters; replies as the teacher's calls were.

    Of a teacher that has answered little, they have from a few tokens to the most, and take 1 to 20 s.
    """
    due = sums.due[key]
    again = 1.0 if key.work == ANSWERS else 1 + ASKED_AGAIN
    said, seconds, basis = usual(past) if len(past) >= FEWEST_CALLS else _unheard(key, crew)
    return (
        Span(low=due, high=round(due * again)),
        Span(low=sums.low_tokens[key], high=again * sums.high_tokens[key]),
        Span(low=due * said.low, high=due * again * said.high),
        seconds,
        f"priors: 3 to 5 characters a token, {basis}",
    )


def usual(past: Sequence[tuple[int, float]]) -> tuple[Span, Span, str]:
    """The middle four fifths of what a teacher's calls took, whatever they were for."""
    tokens, seconds = (sorted(values) for values in zip(*past, strict=True))
    low, high = len(past) // 10, -1 - len(past) // 10
    said = Span(low=tokens[low], high=tokens[high])
    return said, Span(low=seconds[low], high=seconds[high]), f"replies as in {len(past)} settled calls of this teacher"


def _unheard(key: Key, crew: Crew) -> tuple[Span, Span, str]:
    answers = crew.recipe.feedback.answers if key.work == RATINGS else 1
    said = Span(
        low=FEWEST_TOKENS[key.work] * answers,
        high=MOST_TOKENS.get(key.work, crew.recipe.feedback.max_tokens) * answers,
    )
    low, high = SECONDS_A_CALL
    basis = f"{said.low:g} to {said.high:g} tokens a reply, {low:g} to {high:g} s a call"
    return said, Span(low=low, high=high), basis


def from_sample(sample: Sequence[Used], due: int, rows: int, key: Key) -> Spans:
    """95 % intervals of what is due, from prompts that are done (percentile bootstrap over prompts, Efron 1979).

    Each resample gives its use for each call that was not asked again; the rest, of `rows` prompts, varies about that
    as they did.
    """
    import numpy as np  # 0.1 s that only a forecast pays

    rng = np.random.default_rng(int(hashlib.sha256(f"{key.teacher}:{key.work}".encode()).hexdigest()[:8], 16))
    drawn = rng.integers(0, len(sample), (RESAMPLES, len(sample)))
    first = np.asarray([used.first for used in sample], dtype=float)
    noise = rng.standard_normal(RESAMPLES)

    def interval(values: Sequence[float], least: float = 0.0) -> Span:
        given = np.asarray(values, dtype=float)
        sums = due * given[drawn].sum(axis=1) / np.maximum(first[drawn].sum(axis=1), 1)
        scale = due / max(rows * first.mean(), 1e-9)
        sums += noise * given[drawn].std(axis=1) * scale * rows**0.5
        low, high = np.quantile(sums, [0.025, 0.975])
        return Span(low=max(float(low), least), high=max(float(high), least))

    seconds = interval([used.seconds for used in sample])
    return (
        interval([used.calls for used in sample], least=due),
        interval([used.prompt_tokens for used in sample]),
        interval([used.completion_tokens for used in sample]),
        seconds.times(1 / max(due, 1)),
        f"{len(sample)} settled prompts",
    )


def priced(known_prices: Prices, model: str, asked: Span, said: Span) -> Span | None:
    """What so many tokens cost, in US dollars; None where the model has no price."""
    low = known_prices.usd(model, round(asked.low), round(said.low))
    high = known_prices.usd(model, round(asked.high), round(said.high))
    return None if low is None or high is None else Span(low=low, high=high)


def _seconds(due: Sequence[Part], rows: int, crew: Crew) -> Span:
    """Wall time: as long as the busiest teacher needs, under its limits and the prompts that may be under way."""
    if not due:
        return NOTHING
    lows, highs = zip(*_bounds(due, rows, crew), strict=True)
    return Span(low=max(lows), high=max(highs))


def _bounds(due: Sequence[Part], rows: int, crew: Crew) -> Iterator[tuple[float, float]]:
    """The times, each low and high, that the work cannot be done in less than."""
    under_way = max(1, min(rows, crew.recipe.feedback.concurrency))
    limits = _limits(crew)
    for label in dict.fromkeys(part.teacher for part in due):
        parts = [part for part in due if part.teacher == label]
        at_once = min(limits[label].concurrency, under_way * sum(part.due for part in parts) / max(rows, 1))
        is_by_rules = _is_by_rules(Key(label, parts[0].work), crew)  # one after another, here
        yield from _bounds_of_one(parts, 1.0 if is_by_rules else max(1.0, at_once), limits[label])
    # A prompt's answers come before its ratings; of either kind all are under way at once.
    answers, others = ([part for part in due if (part.work == ANSWERS) == is_so] for is_so in (True, False))
    low = sum(max((part.seconds_a_call.low for part in kind), default=0) for kind in (answers, others))
    high = sum(max((part.seconds_a_call.high for part in kind), default=0) for kind in (answers, others))
    yield rows * low / under_way, rows * high / under_way


def _bounds_of_one(parts: Sequence[Part], at_once: float, limits: Limits) -> Iterator[tuple[float, float]]:
    yield (
        sum(part.calls.low * part.seconds_a_call.low for part in parts) / at_once,
        sum(part.calls.high * part.seconds_a_call.high for part in parts) / at_once,
    )
    calls, tokens = total(part.calls for part in parts), total(_tokens(part) for part in parts)
    for most, units in ((limits.requests_per_minute, calls), (limits.tokens_per_minute, tokens)):
        if most:
            yield units.low * 60 / most, units.high * 60 / most


def _tokens(part: Part) -> Span:
    return total((part.prompt_tokens, part.completion_tokens))


def _limits(crew: Crew) -> dict[str, Limits]:
    feedback = crew.recipe.feedback
    assert feedback.rater
    hired = zip((*crew.pool, crew.rater), (*feedback.completers, feedback.rater), strict=True)
    return {teacher.label: choice.limits for teacher, choice in hired}


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """A forecast for people."""
    made = Forecast.model_validate(told)
    for part in made.parts:
        if not part.due:
            yield f"  {part.teacher}: all {part.settled} calls for {part.work} are settled already"
            continue
        tokens = f", {_counted(_tokens(part))} tokens" if part.prompt_tokens.high else ""
        paid = f", {part.settled} settled already" if part.settled else ""
        usd = "no price" if part.usd is None else _dollars(part.usd)
        yield f"  {part.teacher}: {_counted(part.calls)} calls for {part.work}{tokens}, {usd}{paid} ({part.basis})"
    if not made.calls.high:
        yield f"  nothing is left to pay for: {made.prompts} {made.of} are settled"
        return
    usd = "no price" if made.usd is None else _dollars(made.usd)
    unpriced = f" without {', '.join(made.no_price)}, which has no price" if made.usd and made.no_price else ""
    yield (
        f"  in all {_counted(made.calls)} calls, {_counted(made.tokens)} tokens, {_time(made.seconds)}, {usd}{unpriced}"
        f" for {made.prompts - made.prompts_settled} of {made.prompts} {made.of}"
    )


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
