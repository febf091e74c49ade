"""What score each answer of a rated prompt has, by the recipe's rules; whatever has none is counted."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from math import isnan
from typing import Any

import numpy as np
import numpy.typing as npt

from zephyrctl.contracts import Answer, Answers, Asked, NoPair
from zephyrctl.data.rated_columns import Marks, Values
from zephyrctl.data.word_hashes import Places
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe.schema import Binarize
from zephyrctl.records import RatedPrompt

Scores = Sequence[float | None]
"""The scores of the answers to one prompt; None where an answer has none."""

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


def scores_of(marks: Marks, rules: Binarize, noted: "Counter[str]") -> list[Scores]:
    """The scores of the answers, prompt by prompt: from 1 to 5 by aspects, from 1 to 10 overall.

    An answer has None where nothing scores it, or where it lacks a rating and the rules leave such answers out. What is
    mended on the way is counted in `noted`.
    """
    scores = _scored(marks, rules, noted)
    scores[_lacking(marks, rules)] = np.nan
    listed = [None if isnan(score) else score for score in scores.tolist()]
    ends = np.cumsum(marks.answers).tolist()
    return [listed[start:end] for start, end in pairwise([0, *ends])]


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


def answers_of(prompt: RatedPrompt, rules: Binarize, noted: "Counter[str]") -> Answers | NoPair:
    """The scored answers of one prompt by itself, two or more, or why there are none."""
    (scores,) = scores_of(Marks.of([prompt]), rules, noted)
    return answers_by(scores, Asked(lambda: prompt), rules, noted)


def answers_by(scores: Scores, asked: Asked, rules: Binarize, noted: "Counter[str]") -> Answers | NoPair:
    """The answers that have a score, two or more, or why there are none; what is missing or tied goes into `noted`."""
    scored = [Answer(place, score, asked) for place, score in enumerate(scores) if score is not None]
    if without := len(scores) - len(scored):
        if rules.missing == "drop-prompt":
            return NoPair("a rating is missing")
        noted["answers_left_out"] += without
    if len(scored) < 2:
        return NoPair("fewer than two rated answers")
    return Answers(asked, scored, _best(scored, rules.ties, noted))


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


def _scored(marks: Marks, rules: Binarize, noted: "Counter[str]") -> Values:
    """A score for each answer, NaN where there is none, whatever else it lacks."""
    if rules.score == "overall-as-published":
        return marks.overall.copy()
    if rules.score == "overall":
        return _mended(marks, noted)
    if rules.score == "weights":
        weights = [rules.weights.get(name, 0.0) for name in marks.names]
        return np.round(_means(marks, np.array(weights, np.float64)), DECIMALS)
    return np.round(_means(marks, np.ones(len(marks.names))), DECIMALS)


def _means(marks: Marks, weights: Values) -> Values:
    """The weighted mean of each answer over the aspects that have both a weight and a value."""
    answers = np.repeat(np.arange(len(marks.ratings)), marks.ratings)
    is_given = ~np.isnan(marks.values)
    here, weight = answers[is_given], weights[marks.aspects[is_given]]
    sums = np.bincount(here, weight * marks.values[is_given], len(marks.ratings))
    totals = np.bincount(here, weight, len(marks.ratings))
    means: Values = np.divide(sums, totals, out=np.full(len(sums), np.nan), where=totals > 0)
    return means


def _mended(marks: Marks, noted: "Counter[str]") -> Values:
    """The overall scores, without the defect that turned 1 into 10 in the published UltraFeedback.

    Its authors' repair: a 10 whose aspects have a mean of at most 2 was a 1, above 4 it is a 10, and between the two
    nobody knows. A 10 without aspects is unknown too.
    """
    scores = marks.overall.copy()
    means = _means(marks, np.ones(len(marks.names)))
    is_one = (scores == 10) & (means <= 2)
    is_unknown = (scores == 10) & ~is_one & ~(means > 4)
    scores[is_one], scores[is_unknown] = 1, np.nan
    noted += Counter(overall_10_was_1=int(is_one.sum()), overall_10_unknown=int(is_unknown.sum()))
    return scores


def _lacking(marks: Marks, rules: Binarize) -> npt.NDArray[np.bool_]:
    """Which answers lack a rating that the rules want of them; none where what is missing is skipped."""
    if rules.missing == "skip" or rules.score not in ("mean", "weights"):
        return np.zeros(len(marks.ratings), np.bool_)
    weighted = [aspect for aspect, weight in rules.weights.items() if weight]
    is_wanted = np.array([rules.score == "mean" or name in weighted for name in marks.names], np.bool_)
    prompts = np.repeat(np.arange(len(marks.answers)), marks.answers)
    answers = np.repeat(np.arange(len(marks.ratings)), marks.ratings)
    is_given = ~np.isnan(marks.values) & is_wanted[marks.aspects]
    given = _distinct(answers[is_given], marks.aspects[is_given], len(marks.ratings), len(marks.names))
    if rules.score == "weights":
        return given < len(weighted)
    asked = _distinct(prompts[answers], marks.aspects, len(marks.answers), len(marks.names))
    return given < asked[prompts]


def _distinct(owners: Places, aspects: Places, count: int, names: int) -> Places:
    """How many different aspects each of `count` owners has."""
    return np.bincount(np.unique(owners * max(names, 1) + aspects) // max(names, 1), minlength=count)


def _best(scored: Sequence[Answer], ties: str, noted: "Counter[str]") -> list[Answer]:
    """Those that may be chosen, as `ties` says."""
    highest = max([answer.score for answer in scored])
    best = [answer for answer in scored if answer.score == highest]
    if len(best) > 1:
        noted["tied_for_best"] += 1
        return {"random": best, "first": best[:1], "drop": []}[ties]
    return best
