"""Ratings from pairwise verdicts: Bradley and Terry (1952), on the Elo scale, with bootstrap intervals."""

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
SCALE = 400 / math.log(10)
"""A model 400 points above another is expected to win ten times as often."""
PRIOR = 0.5
"""Verdicts given to every pair beside its own, half won and half lost: one that never lost has a finite rating."""
RESAMPLES = 1000
STEPS = 100
CLOSE = 1e-7
FREE = 1e-9
"""Only differences are determined: this holds what is free, and moves nothing else."""

Verdict = tuple[str, str, float]
"""Two models and the first one's share of a win: 1, 0.5 or 0."""


@dataclass(frozen=True)
class FittedRating:
    """One model's rating with its 95 % interval; `n` is how many verdicts it rests on."""

    rating: float
    low: float
    high: float
    n: int


def rate(by_question: Mapping[str, Sequence[Verdict]]) -> dict[str, FittedRating]:
    """Every model's rating, the best first, with mean 1000; questions are resampled whole.

    A draw counts half a win. Raises ValueError without a verdict.
    """
    import numpy as np

    names = list(
        dict.fromkeys(name for verdicts in by_question.values() for verdict in verdicts for name in verdict[:2])
    )
    if not names:
        raise ValueError("no verdicts to rate by")
    wins = _wins(list(by_question.values()), names)
    met = wins.sum(axis=0)
    prior = PRIOR / 2 * ((met + met.T) > 0)
    found = _fit(met + prior)
    seed = int(hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:8], 16)
    drawn = np.random.default_rng(seed).multinomial(len(wins), np.full(len(wins), 1 / len(wins)), RESAMPLES)
    resampled = _fit(np.tensordot(drawn, wins, axes=1) + prior)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    counts = met.sum(axis=0) + met.sum(axis=1)
    order = sorted(range(len(names)), key=lambda place: -found[place])
    return {
        names[place]: FittedRating(
            round(float(found[place]), 2),
            round(float(low[place]), 2),
            round(float(high[place]), 2),
            round(counts[place]),
        )
        for place in order
    }


def _wins(questions: Sequence[Sequence[Verdict]], names: Sequence[str]) -> "Array":
    """How much of a win each model has over each other one, by question: [questions, models, models]."""
    import numpy as np

    places = {name: place for place, name in enumerate(names)}
    wins: Array = np.zeros((len(questions), len(names), len(names)))
    for number, verdicts in enumerate(questions):
        for first, second, share in verdicts:
            wins[number, places[first], places[second]] += share
            wins[number, places[second], places[first]] += 1 - share
    return wins


def _fit(wins: "Array") -> "Array":
    """The likeliest ratings by Newton's method, for any number of tables at once: [..., models, models].

    Models that no chain of verdicts links are held together at the mean.
    """
    import numpy as np

    count = wins.shape[-1]
    met = wins + wins.swapaxes(-1, -2)
    strengths: Array = np.zeros(wins.shape[:-1])
    for _ in range(STEPS):
        said = 1 / (1 + np.exp(strengths[..., None, :] - strengths[..., :, None]))
        gradient = (wins - met * said).sum(axis=-1)
        information = met * said * (1 - said)
        curve = np.eye(count) * (information.sum(axis=-1)[..., None] + FREE) - information
        step = np.linalg.solve(curve, gradient[..., None])[..., 0]
        step -= step.mean(axis=-1, keepdims=True)
        step /= np.maximum(1.0, np.abs(step).max(axis=-1, keepdims=True))
        strengths = strengths + step
        if float(np.abs(step).max()) < CLOSE:
            break
    ratings: Array = MEAN + SCALE * strengths
    return ratings
