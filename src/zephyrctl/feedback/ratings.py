"""Ask the rater about the answers to one prompt: repeats, shuffled orders, asking again, and critiques."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean, stdev

from zephyrctl import verdicts
from zephyrctl.contracts import Critique, Ratings, Teacher
from zephyrctl.errors import ZephyrError
from zephyrctl.records import Completion, Judgment, RatedPrompt, Rating

MOST_ASKS = 10
"""The most that `feedback.asks` may be. A call's sample index is repeat x 10 + ask, so that calls that are paid for are
found again after either setting changes."""
CRITIQUE = "critique"
NOT_APPLICABLE = "ratings missing: said not to apply (N/A)"
UNREADABLE = "ratings missing: could not be read"
"""What missing ratings are counted under."""


@dataclass(frozen=True)
class RatingCall:
    """One call to the rater, and its ratings in the order of the prompt's answers (none for a critique)."""

    judgment: Judgment
    ratings: list[Rating]
    is_readable: bool


def shuffle_order(count: int, prompt_id: str, aspect: str, repeat: int, ask: int, seed: int) -> list[int]:
    """The numbers of the answers in the order in which a call shows them, different for each repeat and ask.

    If the order were the same, a greedy rater would only repeat itself.
    """
    suffix = f":{repeat}:{ask}" if repeat or ask else ""
    order = list(range(count))
    Random(f"{seed}:{prompt_id}:{aspect}{suffix}").shuffle(order)
    return order


async def rate(prompt: RatedPrompt, rater: Teacher, aspect: str, repeat: int, asks: int, seed: int) -> list[RatingCall]:
    """One repeat of one aspect: a call, and up to `asks` in all as long as the reply cannot be read.

    Raises CallFailed if a call fails for good, and ZephyrError if the number of ratings is not that of the answers.
    """
    texts = [completion.text for completion in prompt.completions]
    calls: list[RatingCall] = []
    for ask in range(asks):
        order = shuffle_order(len(texts), prompt.id, aspect, repeat, ask, seed)
        shown = [texts[number] for number in order]
        ratings = await rater.rate(prompt.messages, shown, aspect, repeat * MOST_ASKS + ask)
        calls.append(_rating_call(prompt.id, aspect, repeat, ask, order, ratings, rater))
        if ratings.is_readable:
            break
    return calls


def _rating_call(
    prompt_id: str, aspect: str, repeat: int, ask: int, order: Sequence[int], ratings: Ratings, rater: Teacher
) -> RatingCall:
    if len(ratings.marks) != len(order):
        raise ZephyrError(
            f"the rater {rater.name!r} gave {len(ratings.marks)} ratings for {len(order)} answers",
            "name another under feedback.rater, or fix the plugin: one rating per answer, None if it has none",
        )
    # order [2, 0, 1] shows answer 2 first: the first rating belongs to answer 2.
    by_answer = dict(zip(order, ratings.marks, strict=True))
    ordered = []
    for number in sorted(by_answer):
        rating = by_answer[number]
        ordered.append(rating if rating.rater else rating.model_copy(update={"rater": ratings.model}))
    judgment = Judgment(
        prompt_id=prompt_id,
        aspect=aspect,
        repeat=repeat,
        ask=ask,
        order=list(order),
        values=[rating.value for rating in ordered],
        text=ratings.text,
        rater=ratings.model,
    )
    return RatingCall(judgment, ordered, ratings.is_readable)


async def criticise(prompt: RatedPrompt, rater: Teacher, number: int, asks: int) -> list[RatingCall]:
    """The critique of one answer, asked for again if it has no score and does not say N/A."""
    calls: list[RatingCall] = []
    for ask in range(asks):
        critique = await rater.critique(prompt.messages, prompt.completions[number].text, ask)
        is_readable = critique.overall is not None or verdicts.is_not_applicable(critique.text)
        calls.append(RatingCall(_critique_judgment(prompt.id, number, ask, critique), [], is_readable))
        if is_readable:
            break
    return calls


def _critique_judgment(prompt_id: str, number: int, ask: int, critique: Critique) -> Judgment:
    return Judgment(
        prompt_id=prompt_id,
        aspect=CRITIQUE,
        repeat=0,
        ask=ask,
        order=[number],
        values=[critique.overall],
        text=critique.text,
        rater=critique.model,
    )


def deciding_call(calls: Sequence[RatingCall]) -> RatingCall:
    """The call that counts: the readable one, else the first of those that gave the most ratings."""
    readable = [call for call in calls if call.is_readable]
    if readable:
        return readable[0]
    return max(calls, key=lambda call: sum(value is not None for value in call.judgment.values))


@dataclass(frozen=True)
class MissingRatings:
    """The number of ratings that are missing, by cause."""

    not_applicable: int = 0
    unreadable: int = 0


def add_ratings(completions: Sequence[Completion], repeats: Sequence[Sequence[RatingCall]]) -> list[Completion]:
    """The completions with one rating per aspect, each from the calls that count, and with critiques if there are."""
    calls = [deciding_call(repeat) for repeat in repeats]
    aspects = dict.fromkeys(call.judgment.aspect for call in calls if call.judgment.aspect != CRITIQUE)
    critiques = {call.judgment.order[0]: call.judgment for call in calls if call.judgment.aspect == CRITIQUE}
    rated = []
    for number, completion in enumerate(completions):
        ratings = []
        for aspect in aspects:
            ratings.append(_mean([call.ratings[number] for call in calls if call.judgment.aspect == aspect]))
        changes: dict[str, object] = {"ratings": ratings}
        if critique := critiques.get(number):
            changes |= {"critique": critique.text, "overall": critique.values[0]}
        rated.append(completion.model_copy(update=changes))
    return rated


def _mean(repeats: Sequence[Rating]) -> Rating:
    """One rating from its repeats: the mean of those that have a value, and their sample deviation (ddof 1)."""
    valued = [rating for rating in repeats if rating.value is not None]
    if not valued or len(repeats) == 1:
        return repeats[0]
    values = [rating.value for rating in valued if rating.value is not None]
    spread = stdev(values) if len(values) > 1 else None
    return valued[0].model_copy(update={"value": fmean(values), "spread": spread})


def count_missing(repeats: Sequence[Sequence[RatingCall]], answers: int) -> MissingRatings:
    """The ratings that no repeat gave, of so many answers: said not to apply, or never readable."""
    by_aspect: dict[str, list[RatingCall]] = {}
    for repeat in repeats:
        call = deciding_call(repeat)
        if call.judgment.aspect != CRITIQUE:
            by_aspect.setdefault(call.judgment.aspect, []).append(call)
    not_applicable = unreadable = 0
    for calls in by_aspect.values():
        are_readable = all(call.is_readable for call in calls)
        missing = sum(all(call.ratings[number].value is None for call in calls) for number in range(answers))
        not_applicable += missing if are_readable else 0
        unreadable += 0 if are_readable else missing
    return MissingRatings(not_applicable, unreadable)
