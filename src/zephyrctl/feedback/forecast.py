"""Forecast what collecting feedback would still cost, from the calls that are not in the call log yet."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from zephyrctl.contracts import Teacher
from zephyrctl.feedback.annotators import ANSWERS, CRITIQUES, RATINGS, Annotators, check
from zephyrctl.feedback.dry_run import SHORTEST_REPLY_TOKENS, CallTotals, DryRunCaller, WorkKey, survey
from zephyrctl.feedback.prompts import PromptSource
from zephyrctl.recipe.schema import Feedback, Limits
from zephyrctl.stages import Inputs
from zephyrctl.teachers import prices
from zephyrctl.teachers.costs import (
    FEWEST_CALLS,
    FEWEST_SAMPLES,
    NOTHING,
    SECONDS_PER_CALL,
    CallHistory,
    Forecast,
    ReplySize,
    Span,
    WorkEstimate,
    WorkForecast,
    add_spans,
    estimate_from_sample,
    measure_replies,
)
from zephyrctl.teachers.prices import Prices

LONGEST_REPLY_TOKENS = {RATINGS: 160, CRITIQUES: 512}
"""The most that is asked for; of ratings, for each answer."""
REPEATED_SHARE = 0.1
"""The prior for the most ratings and critiques that are asked for again because a reply cannot be read."""
SECONDS_PER_RULE_CALL = (0.0001, 0.01)


def forecast(source: PromptSource, inputs: Inputs, history: CallHistory) -> Forecast:
    """What the collection would still cost. Raises ZephyrError if the stage itself could not start."""
    check(source)
    caller = DryRunCaller(history)
    annotators = Annotators.of(source.recipe.feedback, source.recipe.seed, caller.make_teacher)
    totals = asyncio.run(survey(annotators, source.rows(inputs), caller))
    return Forecaster(totals, annotators, caller.models, prices.load(source.recipe.prices), history).forecast()


class Forecaster:
    """Turns the calls that are due into intervals of tokens, dollars and time."""

    def __init__(
        self,
        totals: CallTotals,
        annotators: Annotators,
        models: Mapping[str, str],
        known_prices: Prices,
        history: CallHistory,
    ) -> None:
        """`models` are the models that servers reported, by the label of the teacher that was asked."""
        self._totals = totals
        self._feedback: Feedback = annotators.feedback
        self._models = models
        self._prices = known_prices
        self._history = history
        assert self._feedback.rater
        teachers = (*annotators.pool, annotators.rater)
        choices = (*self._feedback.completers, self._feedback.rater)
        self._teachers: dict[str, Teacher] = {}
        self._limits: dict[str, Limits] = {}
        for teacher, choice in zip(teachers, choices, strict=True):
            self._teachers.setdefault(teacher.label, teacher)
            self._limits[teacher.label] = choice.limits

    def forecast(self) -> Forecast:
        """The forecast of all work."""
        parts = [self._forecast_work(key) for key in self._totals.works()]
        due = [part for part in parts if part.due]
        priced = [part.usd for part in due if part.usd]
        no_price = list(dict.fromkeys(part.teacher for part in due if part.usd is None))
        return Forecast(
            prompts=self._totals.prompts,
            prompts_settled=self._totals.complete,
            parts=parts,
            calls=add_spans(part.calls for part in parts),
            tokens=add_spans(part.tokens() for part in parts),
            usd=add_spans(priced) if priced or not no_price else None,
            no_price=no_price,
            seconds=self._wall_time(due, self._totals.prompts - self._totals.complete),
        )

    def _forecast_work(self, key: WorkKey) -> WorkForecast:
        teacher = self._teachers[key.teacher]
        estimate = self._estimate(key, teacher)
        is_free = teacher.is_rule_based or teacher.is_free
        model = self._models.get(key.teacher, key.teacher)
        return WorkForecast(
            teacher=key.teacher,
            work=key.work,
            settled=self._totals.settled[key],
            due=self._totals.due[key],
            calls=estimate.calls,
            prompt_tokens=estimate.prompt_tokens,
            completion_tokens=estimate.completion_tokens,
            usd=NOTHING if is_free else estimate.priced(self._prices, model),
            seconds_per_call=estimate.seconds_per_call,
            basis=estimate.basis,
        )

    def _estimate(self, key: WorkKey, teacher: Teacher) -> WorkEstimate:
        due = self._totals.due[key]
        if teacher.is_rule_based:
            low, high = SECONDS_PER_RULE_CALL
            return WorkEstimate(Span(low=due, high=due), NOTHING, NOTHING, Span(low=low, high=high), "rules: free")
        sample = self._totals.sample.get(key, [])
        if len(sample) >= FEWEST_SAMPLES:
            return estimate_from_sample(sample, due, self._totals.prompts_due[key], f"{key.teacher}:{key.work}")
        return self._estimate_from_priors(key, teacher)

    def _estimate_from_priors(self, key: WorkKey, teacher: Teacher) -> WorkEstimate:
        """Prompts by their characters, replies as this teacher's settled calls were, and a tenth of ratings repeated.

        If the teacher has few settled calls, a reply has a few tokens to the most allowed, and takes 1 to 20 s.
        """
        due = self._totals.due[key]
        repeats = 1.0 if key.work == ANSWERS else 1 + REPEATED_SHARE
        sizes = self._history.sizes(teacher)
        reply = measure_replies(sizes) if len(sizes) >= FEWEST_CALLS else self._guess_reply(key)
        return WorkEstimate(
            calls=Span(low=due, high=round(due * repeats)),
            prompt_tokens=Span(low=self._totals.low_tokens[key], high=repeats * self._totals.high_tokens[key]),
            completion_tokens=Span(low=due * reply.tokens.low, high=due * repeats * reply.tokens.high),
            seconds_per_call=reply.seconds,
            basis=f"priors: 3 to 5 characters per token, {reply.basis}",
        )

    def _guess_reply(self, key: WorkKey) -> ReplySize:
        answers = self._feedback.answers if key.work == RATINGS else 1
        shortest = SHORTEST_REPLY_TOKENS[key.work] * answers
        longest = LONGEST_REPLY_TOKENS.get(key.work, self._feedback.max_tokens) * answers
        low, high = SECONDS_PER_CALL
        basis = f"{shortest:g} to {longest:g} tokens per reply, {low:g} to {high:g} s per call"
        return ReplySize(Span(low=shortest, high=longest), Span(low=low, high=high), basis)

    def _wall_time(self, due: Sequence[WorkForecast], prompts: int) -> Span:
        """As long as the slowest bound: each teacher's limits, and the number of prompts in flight."""
        if not due:
            return NOTHING
        bounds = list(self._bounds(due, prompts))
        return Span(low=max(bound.low for bound in bounds), high=max(bound.high for bound in bounds))

    def _bounds(self, due: Sequence[WorkForecast], prompts: int) -> Iterator[Span]:
        """Seconds that the work takes at least, for each reason there is."""
        in_flight = max(1, min(prompts, self._feedback.concurrency))
        for label in dict.fromkeys(part.teacher for part in due):
            parts = [part for part in due if part.teacher == label]
            calls_per_prompt = sum(part.due for part in parts) / max(prompts, 1)
            at_once = max(1.0, min(self._limits[label].concurrency, in_flight * calls_per_prompt))
            if self._teachers[label].is_rule_based:
                at_once = 1.0  # rules run in this process, one after another
            yield from _bounds_of_teacher(parts, at_once, self._limits[label])
        # A prompt is answered, then rated; its answers are all in flight at once, and so are its ratings.
        answers = [part.seconds_per_call for part in due if part.work == ANSWERS]
        ratings = [part.seconds_per_call for part in due if part.work != ANSWERS]
        low = sum(max((span.low for span in spans), default=0) for spans in (answers, ratings))
        high = sum(max((span.high for span in spans), default=0) for spans in (answers, ratings))
        yield Span(low=prompts * low / in_flight, high=prompts * high / in_flight)


def _bounds_of_teacher(parts: Sequence[WorkForecast], at_once: float, limits: Limits) -> Iterator[Span]:
    yield Span(
        low=sum(part.calls.low * part.seconds_per_call.low for part in parts) / at_once,
        high=sum(part.calls.high * part.seconds_per_call.high for part in parts) / at_once,
    )
    if limits.requests_per_minute:
        yield add_spans(part.calls for part in parts).times(60 / limits.requests_per_minute)
    if limits.tokens_per_minute:
        yield add_spans(part.tokens() for part in parts).times(60 / limits.tokens_per_minute)
