"""Score the answers of rated prompts by the recipe's rules, and count the answers that have no score."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from math import isnan

import numpy as np
import numpy.typing as npt

from zephyrctl.contracts import Answer, Answers, LazyPrompt, NoPair
from zephyrctl.data.rated_columns import RatingColumns, Values
from zephyrctl.data.word_hashes import Positions
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe.schema import Binarize
from zephyrctl.records import RatedPrompt

Scores = Sequence[float | None]
"""The scores of the answers to one prompt; None for an answer without a score."""

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
"""The settings that `compat` stands for: the published rule with its defects, and without."""

DECIMALS = 9
"""Scores are rounded to so many decimals: the sums 4.1 + 4.2 + 4.3 and 4.3 + 4.2 + 4.1 must tie."""


def scores_of(ratings: RatingColumns, rules: Binarize, noted: "Counter[str]") -> list[Scores]:
    """The scores of the answers, prompt by prompt: from 1 to 5 by aspects, from 1 to 10 overall.

    An answer has None if nothing scores it, or if it lacks a rating and the rules drop such answers. Repaired overall
    scores are counted in `noted`.
    """
    # scores is one flat array over the answers of all prompts; prompt p owns the slice from ends[p - 1] to ends[p].
    scores = _score_answers(ratings, rules, noted)
    scores[_lacks_rating(ratings, rules)] = np.nan
    listed = [None if isnan(score) else score for score in scores.tolist()]
    ends = np.cumsum(ratings.answers).tolist()
    return [listed[start:end] for start, end in pairwise([0, *ends])]


def resolve(rules: Binarize) -> Binarize:
    """The rules with `compat` spelled out. Raises ZephyrError if they contradict each other or all weights are 0."""
    if rules.compat:
        _check_no_other_choice(rules)
        return rules.model_copy(update=dict(COMPAT[rules.compat]))
    if any(weight < 0 for weight in rules.weights.values()):
        raise ZephyrError("binarize.weights: a weight is negative", "give weights of 0 or more")
    if rules.score == "weights" and not any(rules.weights.values()):
        raise ZephyrError(
            "binarize.score is 'weights', but binarize.weights gives no weight",
            "give one for each aspect: --weights helpfulness=2 --weights honesty=1",
        )
    return rules


def answers_of(prompt: RatedPrompt, rules: Binarize, noted: "Counter[str]") -> Answers | NoPair:
    """The scored answers of one prompt, two or more, or why there are none."""
    (scores,) = scores_of(RatingColumns.of([prompt]), rules, noted)
    return answers_by(scores, LazyPrompt(lambda: prompt), rules, noted)


def answers_by(scores: Scores, asked: LazyPrompt, rules: Binarize, noted: "Counter[str]") -> Answers | NoPair:
    """The answers that have a score, two or more, or why there are none. Missing scores and ties go into `noted`."""
    scored = [Answer(place, score, asked) for place, score in enumerate(scores) if score is not None]
    if missing := len(scores) - len(scored):
        if rules.missing == "drop-prompt":
            return NoPair("a rating is missing")
        noted["answers_left_out"] += missing
    if len(scored) < 2:
        return NoPair("fewer than two rated answers")
    return Answers(asked, scored, _best(scored, rules.ties, noted))


def check_weights(rules: Binarize, known: Collection[str]) -> None:
    """Raise ZephyrError if a weighted aspect has no rating anywhere."""
    unknown = [repr(aspect) for aspect in rules.weights if aspect not in known]
    if rules.score == "weights" and unknown:
        raise ZephyrError(
            f"binarize.weights names {', '.join(unknown)}, for which no answer is rated",
            f"weigh some of: {', '.join(sorted(known)) or 'no aspect is rated here'}",
        )


def _check_no_other_choice(rules: Binarize) -> None:
    """Raise ZephyrError if another setting says how to score or whom to pair: `compat` would override it silently."""
    defaults = type(rules)().model_dump()
    for key in ("strategy", "options", "score", "weights"):
        if (value := getattr(rules, key)) != defaults[key]:
            raise ZephyrError(
                f"binarize.compat is {rules.compat!r} and binarize.{key} is {value!r}: they exclude each other",
                f"--set binarize.compat=null, or leave binarize.{key} at {defaults[key]!r}",
            )


def _score_answers(ratings: RatingColumns, rules: Binarize, noted: "Counter[str]") -> Values:
    """A score for each answer, NaN if there is none, whatever other ratings it lacks."""
    if rules.score == "overall-as-published":
        return ratings.overall.copy()
    if rules.score == "overall":
        return _repair_overall(ratings, noted)
    if rules.score == "weights":
        weights = [rules.weights.get(name, 0.0) for name in ratings.names]
        return np.round(_weighted_means(ratings, np.array(weights, np.float64)), DECIMALS)
    return np.round(_weighted_means(ratings, np.ones(len(ratings.names))), DECIMALS)


def _weighted_means(ratings: RatingColumns, weights: Values) -> Values:
    """The weighted mean of each answer over the aspects that have both a weight and a value; NaN if none has.

    sums = sum of weight x value and totals = sum of weight, over the given ratings of each answer.
    """
    answers = np.repeat(np.arange(len(ratings.ratings)), ratings.ratings)  # the answer of each rating
    is_given = ~np.isnan(ratings.values)
    # A missing rating is NaN and would make the whole sum NaN, so it is left out of both sums.
    owners, weight = answers[is_given], weights[ratings.aspects[is_given]]
    sums = np.bincount(owners, weight * ratings.values[is_given], len(ratings.ratings))
    totals = np.bincount(owners, weight, len(ratings.ratings))
    means: Values = np.divide(sums, totals, out=np.full(len(sums), np.nan), where=totals > 0)
    return means


def _repair_overall(ratings: RatingColumns, noted: "Counter[str]") -> Values:
    """The overall scores without the defect of the published UltraFeedback, in which a 1 became a 10.

    The repair of its authors: a 10 was a 1 if the aspects have a mean of at most 2, and is a 10 above a mean of 4.
    Between the two, and for a 10 without aspects, nobody knows: the score is missing.
    """
    scores = ratings.overall.copy()
    means = _weighted_means(ratings, np.ones(len(ratings.names)))
    # A comparison with NaN is False, so a 10 without a mean is neither "at most 2" nor "above 4": it is unknown.
    is_one = (scores == 10) & (means <= 2)
    is_unknown = (scores == 10) & ~is_one & ~(means > 4)
    scores[is_one], scores[is_unknown] = 1, np.nan
    noted += Counter(overall_10_was_1=int(is_one.sum()), overall_10_unknown=int(is_unknown.sum()))
    return scores


def _lacks_rating(ratings: RatingColumns, rules: Binarize) -> npt.NDArray[np.bool_]:
    """Which answers lack a rating that the rules require; none if `missing` is `skip`.

    For a mean, an answer needs every aspect that its prompt was rated for; for weights, every weighted aspect.
    """
    if rules.missing == "skip" or rules.score not in ("mean", "weights"):
        return np.zeros(len(ratings.ratings), np.bool_)
    weighted = [aspect for aspect, weight in rules.weights.items() if weight]
    is_wanted = np.array([rules.score == "mean" or name in weighted for name in ratings.names], np.bool_)
    prompts = np.repeat(np.arange(len(ratings.answers)), ratings.answers)  # the prompt of each answer
    answers = np.repeat(np.arange(len(ratings.ratings)), ratings.ratings)  # the answer of each rating
    # An answer may be rated several times for one aspect: what counts is how many different aspects have a value.
    is_given = ~np.isnan(ratings.values) & is_wanted[ratings.aspects]
    names = len(ratings.names)
    given = _count_distinct(answers[is_given], ratings.aspects[is_given], len(ratings.ratings), names)
    if rules.score == "weights":
        return given < len(weighted)
    # For a mean, an aspect is required if any answer of the prompt has a rating for it, even one without a value.
    required = _count_distinct(prompts[answers], ratings.aspects, len(ratings.answers), names)
    return given < required[prompts]


def _count_distinct(owners: Positions, aspects: Positions, count: int, names: int) -> Positions:
    """How many different aspects each of `count` owners has. (owner, aspect) is one number: owner x names + aspect."""
    width = max(names, 1)
    return np.bincount(np.unique(owners * width + aspects) // width, minlength=count)


def _best(scored: Sequence[Answer], ties: str, noted: "Counter[str]") -> list[Answer]:
    """The answers that may be chosen, as `ties` says."""
    highest = max([answer.score for answer in scored])
    best = [answer for answer in scored if answer.score == highest]
    if len(best) > 1:
        noted["tied_for_best"] += 1
        return {"random": best, "first": best[:1], "drop": []}[ties]
    return best
