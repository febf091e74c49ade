"""What the rater says of the answers to one prompt: repeats, orders, asking again, critiques, and its raw words."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean, stdev

from zephyrctl import verdicts
from zephyrctl.contracts import Critique, Ratings, Teacher
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Completion, Judgment, RatedPrompt, Rating

MOST_ASKS = 10
"""The most that `feedback.asks` may be: a call's sample index is repeat x 10 + ask, so that other settings of either
find the calls that were paid for."""
CRITIQUE = "critique"
NOT_APPLICABLE = "ratings missing: said not to apply (N/A)"
UNREADABLE = "ratings missing: could not be read"
"""What missing ratings are counted under."""


@dataclass(frozen=True)
class Heard:
    """One call as it was, and the marks it gave by place of the answer."""

    judgment: Judgment
    marks: list[Rating]
    is_readable: bool


def order_of(count: int, prompt_id: str, aspect: str, repeat: int, ask: int, seed: int) -> list[int]:
    """The places of the answers in the order in which a call shows them; another for every repeat and every ask.

    Asked again in the same order, a greedy rater would only say the same.
    """
    later = f":{repeat}:{ask}" if repeat or ask else ""
    order = list(range(count))
    Random(f"{seed}:{prompt_id}:{aspect}{later}").shuffle(order)
    return order


async def rate(prompt: RatedPrompt, rater: Teacher, aspect: str, repeat: int, recipe: Recipe) -> list[Heard]:
    """One repeat of one aspect: the call, and those after it while the reply cannot be read.

    Raises CallFailed where a call fails for good, ZephyrError where a rater gives more or fewer marks than answers.
    """
    texts = [completion.text for completion in prompt.completions]
    heard: list[Heard] = []
    for ask in range(recipe.feedback.asks):
        order = order_of(len(texts), prompt.id, aspect, repeat, ask, recipe.seed)
        shown = [texts[place] for place in order]
        ratings = await rater.rate(prompt.messages, shown, aspect, repeat * MOST_ASKS + ask)
        heard.append(_heard(prompt.id, aspect, repeat, ask, order, ratings, rater))
        if ratings.is_readable:
            break
    return heard


def _heard(
    prompt_id: str, aspect: str, repeat: int, ask: int, order: Sequence[int], ratings: Ratings, rater: Teacher
) -> Heard:
    if len(ratings.marks) != len(order):
        raise ZephyrError(
            f"the rater {rater.name!r} gave {len(ratings.marks)} marks for {len(order)} answers",
            "name another under feedback.rater, or mend the plugin: one mark an answer, None where there is none",
        )
    by_place = dict(zip(order, ratings.marks, strict=True))
    marks = [by_place[place] for place in sorted(by_place)]
    marks = [mark if mark.rater else mark.model_copy(update={"rater": ratings.model}) for mark in marks]
    judgment = Judgment(
        prompt_id=prompt_id,
        aspect=aspect,
        repeat=repeat,
        ask=ask,
        order=list(order),
        values=[mark.value for mark in marks],
        text=ratings.text,
        rater=ratings.model,
    )
    return Heard(judgment, marks, ratings.is_readable)


async def criticise(prompt: RatedPrompt, rater: Teacher, place: int, recipe: Recipe) -> list[Heard]:
    """The critique of one answer, asked again while it has no score and does not say that it gives none."""
    heard: list[Heard] = []
    for ask in range(recipe.feedback.asks):
        critique = await rater.critique(prompt.messages, prompt.completions[place].text, ask)
        is_readable = critique.overall is not None or verdicts.is_not_applicable(critique.text)
        heard.append(Heard(_review(prompt.id, place, ask, critique), [], is_readable))
        if is_readable:
            break
    return heard


def _review(prompt_id: str, place: int, ask: int, critique: Critique) -> Judgment:
    return Judgment(
        prompt_id=prompt_id,
        aspect=CRITIQUE,
        repeat=0,
        ask=ask,
        order=[place],
        values=[critique.overall],
        text=critique.text,
        rater=critique.model,
    )


def settled(heard: Sequence[Heard]) -> Heard:
    """The call that counts: the readable one, or, where none is, the one that gave most marks (the first of such)."""
    readable = [call for call in heard if call.is_readable]
    return readable[0] if readable else max(heard, key=lambda call: sum(v is not None for v in call.judgment.values))


@dataclass(frozen=True)
class Missing:
    """How many marks nobody gave, by why."""

    not_applicable: int = 0
    unreadable: int = 0


def marked(completions: Sequence[Completion], repeats: Sequence[Sequence[Heard]]) -> list[Completion]:
    """The completions with one rating an aspect, each from the calls that count; and critiques where there are some."""
    calls = [settled(heard) for heard in repeats]
    aspects = dict.fromkeys(call.judgment.aspect for call in calls if call.judgment.aspect != CRITIQUE)
    reviews = {call.judgment.order[0]: call.judgment for call in calls if call.judgment.aspect == CRITIQUE}
    made = []
    for place, completion in enumerate(completions):
        ratings = [_mean([call.marks[place] for call in calls if call.judgment.aspect == aspect]) for aspect in aspects]
        changes: dict[str, object] = {"ratings": ratings}
        if review := reviews.get(place):
            changes |= {"critique": review.text, "overall": review.values[0]}
        made.append(completion.model_copy(update=changes))
    return made


def _mean(marks: Sequence[Rating]) -> Rating:
    """One rating from its repeats: the mean of those that have a value, and their sample deviation (ddof 1)."""
    given = [mark for mark in marks if mark.value is not None]
    if not given or len(marks) == 1:
        return marks[0]
    values = [mark.value for mark in given if mark.value is not None]
    spread = stdev(values) if len(values) > 1 else None
    return given[0].model_copy(update={"value": fmean(values), "spread": spread})


def missing(repeats: Sequence[Sequence[Heard]], count: int) -> Missing:
    """The ratings of `count` answers that no repeat gave: said not to apply, or never readable."""
    by_aspect: dict[str, list[Heard]] = {}
    for heard in repeats:
        call = settled(heard)
        if call.judgment.aspect != CRITIQUE:
            by_aspect.setdefault(call.judgment.aspect, []).append(call)
    none = [
        all(call.is_readable for call in calls)
        for calls in by_aspect.values()
        for place in range(count)
        if all(call.marks[place].value is None for call in calls)
    ]
    return Missing(not_applicable=sum(none), unreadable=len(none) - sum(none))
