"""Rate models from pairwise verdicts (Bradley and Terry 1952) on the Elo scale, with bootstrap intervals."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

MEAN = 1000.0
"""The mean rating of all models. Verdicts determine only differences, so a mean has to be chosen."""
SCALE = 400 / math.log(10)
"""Elo points per unit of log-odds: a model 400 points above another is expected to win ten times as often."""
PRIOR = 0.5
"""Verdicts added to each pair that met, half won and half lost: a model that never lost has a finite rating."""
RESAMPLES = 1000
MAX_ITERATIONS = 100
TOLERANCE = 1e-7
"""Newton's method stops if no log-strength moves by more than this: 0.00002 Elo points."""
RIDGE = 1e-9
"""Added to the diagonal of the Hessian, which is singular: adding a constant to all strengths changes nothing."""

Verdict = tuple[str, str, float]
"""Two models and the first one's share of a win: 1, 0.5 or 0."""


@dataclass(frozen=True)
class FittedRating:
    """One model's rating with its 95 % interval, from `n` verdicts."""

    rating: float
    low: float
    high: float
    n: int


def rate(by_question: Mapping[str, Sequence[Verdict]]) -> dict[str, FittedRating]:
    """The rating of each model, the best first. The mean is 1000, and a draw counts as half a win.

    The bootstrap resamples whole questions. Raises ValueError if there are no verdicts.
    """
    import numpy as np

    verdicts = [verdict for of_question in by_question.values() for verdict in of_question]
    names = list(dict.fromkeys(name for verdict in verdicts for name in verdict[:2]))
    if not names:
        raise ValueError("no verdicts to rate by")
    wins = _wins(list(by_question.values()), names)
    total = wins.sum(axis=0)  # [models, models]: row beats column
    prior = PRIOR / 2 * ((total + total.T) > 0)
    ratings = _fit(total + prior)
    seed = int(hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:8], 16)
    # A resample is how often each question is drawn: [RESAMPLES, questions]. Its win table is then one matrix product,
    # and all 1,000 tables are fitted together.
    draws = np.random.default_rng(seed).multinomial(len(wins), np.full(len(wins), 1 / len(wins)), RESAMPLES)
    resampled = _fit(np.tensordot(draws, wins, axes=1) + prior)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    counts = total.sum(axis=0) + total.sum(axis=1)
    rated = {}
    for model in sorted(range(len(names)), key=lambda model: -ratings[model]):
        rating, below, above = (round(float(values[model]), 2) for values in (ratings, low, high))
        rated[names[model]] = FittedRating(rating, below, above, n=round(counts[model]))
    return rated


def _wins(questions: Sequence[Sequence[Verdict]], names: Sequence[str]) -> "Array":
    """How much of a win each model has over each other model, by question: [questions, models, models]."""
    import numpy as np

    index = {name: number for number, name in enumerate(names)}
    wins: Array = np.zeros((len(questions), len(names), len(names)))
    for number, verdicts in enumerate(questions):
        for first, second, share in verdicts:
            wins[number, index[first], index[second]] += share
            wins[number, index[second], index[first]] += 1 - share
    return wins


def _fit(wins: "Array") -> "Array":
    """The ratings of greatest likelihood, for any number of win tables at once: [..., models, models] -> [..., models].

    P(i beats j) = sigmoid(s_i - s_j), and the rating is MEAN + SCALE s. Groups of models that no chain of verdicts
    links have the same mean.
    """
    import numpy as np

    count = wins.shape[-1]
    games = wins + wins.swapaxes(-1, -2)
    strengths: Array = np.zeros(wins.shape[:-1])
    # Newton's method, because the log-likelihood is concave: for four models over 600 points it takes 6 iterations,
    # and the MM updates of Hunter (2004) take 71.
    for _ in range(MAX_ITERATIONS):
        expected = 1 / (1 + np.exp(strengths[..., None, :] - strengths[..., :, None]))  # P(row beats column)
        gradient = (wins - games * expected).sum(axis=-1)
        information = games * expected * (1 - expected)
        # The negative Hessian is a graph Laplacian: a pair's information is on the diagonal with +, elsewhere with -.
        hessian = np.eye(count) * (information.sum(axis=-1)[..., None] + RIDGE) - information
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        step -= step.mean(axis=-1, keepdims=True)
        # A step of at most 1 (174 Elo points) cannot overshoot into the flat part of the sigmoid.
        step /= np.maximum(1.0, np.abs(step).max(axis=-1, keepdims=True))
        strengths = strengths + step
        if float(np.abs(step).max()) < TOLERANCE:
            break
    ratings: Array = MEAN + SCALE * strengths
    return ratings
