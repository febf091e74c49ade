"""Check that a binarizer keeps its contract."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, Literal, get_args

from zephyrctl.contracts import (
    Answer,
    Answers,
    Binarizer,
    LazyPrompt,
    NoPair,
    Picked,
)
from zephyrctl.records import Completion, Message, RatedPrompt, Rating
from zephyrctl.testing.plugin_classes import check_class, require

Ties = Literal["random", "first", "drop"]
CASES = 120
"""Rated prompts that a binarizer is shown; one in four has a tie for the best, one in eight is tied throughout."""


def rated(*answers: tuple[str, float | None], ties: Ties = "random", asked: str = "Why?") -> Answers:
    """The answers to a prompt as a strategy sees them: texts with their scores, 1 to 5; None is not scored."""
    completions = [
        Completion(model=f"model-{place}", text=text, ratings=[Rating(aspect="helpfulness", value=score)])
        for place, (text, score) in enumerate(answers)
    ]
    messages = [Message(role="user", content=asked)]
    prompt = RatedPrompt(id=f"id of {asked}", messages=messages, completions=completions, source="conformance")
    lazy_prompt = LazyPrompt(lambda: prompt)
    scored = [Answer(place, score, lazy_prompt) for place, (_, score) in enumerate(answers) if score is not None]
    best = [answer for answer in scored if answer.score == max(one.score for one in scored)]
    if len(best) > 1:
        best = {"random": best, "first": best[:1], "drop": []}[ties]
    return Answers(lazy_prompt, scored, best)


def check_binarizer(make: Callable[[], Binarizer], *, pairs_ties: bool = False) -> None:
    """Check that a strategy pairs scored answers of one prompt, the better one chosen, with no other randomness.

    `pairs_ties` allows pairs of equal scores, as the published set has.
    """
    strategy = make()
    check_class(type(strategy))
    cases = list(_cases())
    picked = {number: _picked(strategy, case, number, pairs_ties) for number, case in enumerate(cases)}
    require(any(picked.values()), f"it makes no pair of any of {len(cases)} prompts with scores from 1 to 5")
    for number in reversed(picked):  # another instance, another order, another state of the process
        with _other_chance(number):
            again = _picked(make(), cases[number], number, pairs_ties)
        require(
            again == picked[number],
            f"it is not deterministic: with the same seed the pairs {picked[number]} became {again}; draw from rng "
            "alone, and keep nothing from one prompt to the next",
        )


def _cases() -> Iterator[Answers]:
    """Prompts of two to five answers: short, long, equal and empty texts, ties, and answers without a score."""
    draw = Random(0)
    for number in range(CASES):
        texts = [
            draw.choice(["", "Yes.", "naïve 東京 🙂 ", "word "]) * draw.randint(1, 30)
            for _ in range(draw.randint(2, 5))
        ]
        scores: list[float | None] = [draw.randint(2, 10) / 2 for _ in texts]
        if number % 4 == 0:
            scores[0] = scores[-1] = 5.0
        if number % 8 == 1:
            scores = [3.0] * len(texts)
        if number % 5 == 0 and len(scores) > 2:
            scores[1] = None
        yield rated(*zip(texts, scores, strict=True), ties=get_args(Ties)[number % 3], asked=f"Question {number}?")


@contextmanager
def _other_chance(seed: int) -> Iterator[None]:
    """The process's own generator in another state, which no plugin may draw from."""
    state = random.getstate()
    random.seed(f"other {seed}")
    try:
        yield
    finally:
        random.setstate(state)


def _picked(strategy: Binarizer, case: Answers, number: int, pairs_ties: bool) -> list[tuple[int, int]]:
    """The places that a strategy pairs. Raises Breach if they are not pairs, or if it changes its input."""
    before = list(case.scored), list(case.best), case.prompt.model_dump()
    result = strategy.pick(case, Random(f"seed:{number}"))
    after = list(case.scored), list(case.best), case.prompt.model_dump()
    require(before == after, "it changes the answers that it is given: sort and filter copies")
    if result is None or isinstance(result, NoPair):
        cause = getattr(result, "cause", "no cause")
        require(isinstance(cause, str) and bool(cause.strip()), "a NoPair has no cause to be counted under")
        return []
    pairs = [result] if isinstance(result, Picked) else list(result)
    require(bool(pairs), "it returns an empty sequence: return a NoPair that says why")
    for pair in pairs:
        _check_pair(pair, case, pairs_ties)
    places = [(pair.chosen.place, pair.rejected.place) for pair in pairs]
    require(len(set(places)) == len(places), "it returns the same pair twice")
    return places


def _check_pair(pair: Any, case: Answers, pairs_ties: bool) -> None:
    require(isinstance(pair, Picked), f"it returns {pair!r} where a Picked is wanted")
    for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        known = isinstance(answer, Answer) and any(answer is one or answer == one for one in case.scored)
        require(known, f"the {side} answer is none of the scored answers of the prompt")
    chosen, rejected = pair.chosen, pair.rejected
    require(chosen.place != rejected.place, "an answer is paired with itself")
    is_above = chosen.score > rejected.score or (pairs_ties and chosen.score == rejected.score)
    require(is_above, f"the chosen answer, scored {chosen.score:g}, is not above the rejected one, {rejected.score:g}")
