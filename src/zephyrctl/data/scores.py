"""What score each answer of a rated prompt has, by the recipe's rules; whatever has none is counted."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from zephyrctl.contracts import Answer, Answers, NoPair
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe import Binarize
from zephyrctl.records import Completion, RatedPrompt, Rating

COMPAT: Mapping[str, Mapping[str, str]] = {
    "zephyr-v1": {
        "strategy": "zephyr-v1",
        "score": "overall-as-published",
        "ties": "first",
        "identical": "keep",
        "empty": "keep",
    },
    "zephyr-fixed": {"strategy": "random-rejected", "score": "overall", "ties": "first"},
}
"""The settings that the published rule comes to: with its defects, and without."""

DECIMALS = 9
"""Scores are rounded so far: 4.1 + 4.2 + 4.3 and 4.3 + 4.2 + 4.1 are a tie."""


def resolve(rules: Binarize) -> Binarize:
    """The rules with `compat` spelt out. Raises ZephyrError where they contradict each other or weigh nothing."""
    if rules.compat:
        _check_alone(rules)
        return rules.model_copy(update=dict(COMPAT[rules.compat]))
    if any(weight < 0 for weight in rules.weights.values()):
        raise ZephyrError("binarize.weights: a weight is negative", "give weights of 0 or more")
    if rules.score == "weights" and not any(rules.weights.values()):
        raise ZephyrError(
            "binarize.score is 'weights' and binarize.weights gives none",
            "give one an aspect: --weights helpfulness=2 --weights honesty=1",
        )
    return rules


def answers_of(rated: RatedPrompt, rules: Binarize, noted: "Counter[str]") -> Answers | NoPair:
    """The scored answers of a prompt, two or more, or why there are none.

    What was mended, missing or tied is counted in `noted`.
    """
    wanted = _wanted(rated, rules)
    scored = []
    for place, completion in enumerate(rated.completions):
        score = score_of(completion, rules, noted)
        if score is not None and not (wanted and _lacks(completion, wanted)):
            scored.append(Answer(place, score, completion))
        elif rules.missing == "drop-prompt":
            return NoPair("a rating is missing")
        else:
            noted["answers_left_out"] += 1
    if len(scored) < 2:
        return NoPair("fewer than two rated answers")
    return Answers(rated, scored, _best(scored, rules.ties, noted))


def score_of(completion: Completion, rules: Binarize, noted: "Counter[str]") -> float | None:
    """The score of one answer: from 1 to 5 by aspects, from 1 to 10 overall; None where it has none."""
    if rules.score == "mean":
        return _rounded(completion.mean_rating())
    if rules.score == "weights":
        return _rounded(weighted_mean(completion.ratings, rules.weights))
    if rules.score == "overall-as-published":
        return completion.overall
    return mended(completion, noted)


def mended(completion: Completion, noted: "Counter[str]") -> float | None:
    """The overall score, without the defect that turned 1 into 10 in the published UltraFeedback.

    Its authors' repair: a 10 whose aspects have a mean of at most 2 was a 1, above 4 it is a 10, and between the two
    nobody knows. A 10 without aspects is unknown too.
    """
    if completion.overall != 10:
        return completion.overall
    mean = completion.mean_rating()
    if mean is not None and mean > 4:
        return 10.0
    if mean is not None and mean <= 2:
        noted["overall_10_was_1"] += 1
        return 1.0
    noted["overall_10_unknown"] += 1
    return None


def weighted_mean(ratings: Sequence[Rating], weights: Mapping[str, float]) -> float | None:
    """The weighted mean over the aspects that have both a weight and a value."""
    given = [(weights.get(rating.aspect, 0.0), rating.value) for rating in ratings if rating.value is not None]
    total = sum(weight for weight, _ in given)
    return sum(weight * value for weight, value in given) / total if total else None


def check_weights(rules: Binarize, known: Collection[str]) -> None:
    """Raises ZephyrError where an aspect has a weight and no rating."""
    unknown = [repr(aspect) for aspect in rules.weights if aspect not in known]
    if rules.score == "weights" and unknown:
        raise ZephyrError(
            f"binarize.weights names {', '.join(unknown)}, for which no answer is rated",
            f"weigh some of: {', '.join(sorted(known)) or 'no aspect is rated here'}",
        )


def _check_alone(rules: Binarize) -> None:
    """`compat` says how to score and whom to pair; another choice beside it would be lost."""
    defaults: dict[str, Any] = type(rules)().model_dump()
    for key in ("strategy", "options", "score", "weights"):
        if (value := getattr(rules, key)) != defaults[key]:
            raise ZephyrError(
                f"binarize.compat is {rules.compat!r} and binarize.{key} is {value!r}: one rules the other out",
                f"--set binarize.compat=null, or leave binarize.{key} at {defaults[key]!r}",
            )


def _wanted(rated: RatedPrompt, rules: Binarize) -> set[str]:
    """The aspects that an answer must have a rating for; none where what is missing is skipped."""
    if rules.missing == "skip" or rules.score not in ("mean", "weights"):
        return set()
    if rules.score == "weights":
        return {aspect for aspect, weight in rules.weights.items() if weight}
    return {rating.aspect for completion in rated.completions for rating in completion.ratings}


def _lacks(completion: Completion, wanted: set[str]) -> bool:
    return not wanted <= {rating.aspect for rating in completion.ratings if rating.value is not None}


def _best(scored: Sequence[Answer], ties: str, noted: "Counter[str]") -> list[Answer]:
    """Those that may be chosen, as `ties` says."""
    highest = max(answer.score for answer in scored)
    best = [answer for answer in scored if answer.score == highest]
    if len(best) > 1:
        noted["tied_for_best"] += 1
        return {"random": best, "first": best[:1], "drop": []}[ties]
    return best


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, DECIMALS)
