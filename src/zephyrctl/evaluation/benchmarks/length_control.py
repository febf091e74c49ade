"""The win rate at equal lengths, by AlpacaEval's logistic model (Dubois et al. 2024, arXiv 2404.04475)."""

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zephyrctl.errors import ZephyrError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

MINIMAL, WHOLE = "length_controlled_minimal", "length_controlled_v1"
"""AlpacaEval's names: the second one knows how hard each instruction is, from a file of its second version."""
GAMED_FILE = "df_gamed.csv"
GAMED_WEIGHT = 0.2 / 2
"""Of a comparison of the baseline with itself told to be short, or long: two of each, 0.2 together."""
PENALTIES = 10
FOLDS = 5
SEED = 123
FEWEST = 20
"""Preferences; of fewer, five folds say nothing."""
RESAMPLES = 200
STEPS = 25


class LengthPair(NamedTuple):
    """How long a model's answer is and the reference's beside it, in characters; `place` is that of the instruction."""

    model: int
    reference: int
    place: int = 0


class LengthControlledRate(NamedTuple):
    """A win rate at equal lengths in per cent with its 95 % interval, and the name of the formula."""

    rate: float | None
    low: float | None
    high: float | None
    formula: str


@dataclass(frozen=True)
class Gamed:
    """What AlpacaEval 2 knows beforehand: difficulties by the instruction's place, and comparisons of its baseline."""

    difficulty: dict[int, float]
    features: "Array"
    preferences: "Array"


def read_gamed(path: Path) -> Gamed:
    """AlpacaEval's `df_gamed.csv`. Raises ZephyrError where its columns are others."""
    import numpy as np

    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        features = [[np.tanh(float(row["std_delta_len"])), float(row["instruction_difficulty"]), 0.0] for row in rows]
        difficulty = {int(float(row["index"])): float(row["instruction_difficulty"]) for row in reversed(rows)}
        preferences = [float(row["preference"]) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ZephyrError(f"{path} is not AlpacaEval's {GAMED_FILE}: {error}", "remove it, or fetch it again") from None
    return Gamed(difficulty, np.array(features), np.array(preferences))


def length_controlled(given: Sequence[tuple[float, LengthPair]], gamed: Gamed | None = None) -> LengthControlledRate:
    """The length-controlled win rate in per cent with its interval; None if there are too few preferences.

    P(model wins) = sigmoid(a + b tanh(d) + c difficulty), d = (length of the reference - length of the model) / its
    standard deviation; the rate is the mean at d = 0, and difficulty is left out where nobody knows it. Fitted as
    AlpacaEval does: an L1 penalty chosen by five folds that keep a comparison together. The interval is a percentile
    bootstrap over instructions with the penalty as chosen.
    """
    name = WHOLE if gamed else MINIMAL
    if len(given) < FEWEST or len({beside.reference - beside.model for _, beside in given}) == 1:
        return LengthControlledRate(None, None, None, name)
    import numpy as np

    asked = _features([beside for _, beside in given], gamed)
    preferences = np.array([score for score, _ in given])
    at_equal_length = asked.copy()
    at_equal_length[:, 0] = 0.0
    penalty, found = _fit(asked, preferences, gamed)
    low, high = _bootstrap(asked, preferences, gamed, penalty)
    rate = 100 * float(_sigmoid(at_equal_length @ found).mean())
    return LengthControlledRate(round(rate, 6), round(low, 4), round(high, 4), name)


def _features(given: Sequence[LengthPair], gamed: Gamed | None) -> "Array":
    """A row each: tanh of the standardised difference in length, the difficulty where it is known, and 1."""
    import numpy as np

    differences = np.array([beside.reference - beside.model for beside in given], dtype=float)
    columns = [np.tanh(differences / differences.std(ddof=1))]
    if gamed:
        columns.append(np.array([gamed.difficulty.get(beside.place, 0.0) for beside in given]))
    return np.column_stack([*columns, np.ones(len(given))])


def _whole(asked: "Array", preferences: "Array", gamed: Gamed | None) -> tuple["Array", "Array", "Array"]:
    """Features, preferences and weights, with the comparisons of the baseline before them where there are some."""
    import numpy as np

    if gamed is None:
        return asked, preferences, np.ones(len(asked))
    return (
        np.concatenate([gamed.features, asked]),
        np.concatenate([gamed.preferences, preferences]),
        np.concatenate([np.full(len(gamed.features), GAMED_WEIGHT), np.ones(len(asked))]),
    )


def _fit(asked: "Array", preferences: "Array", gamed: Gamed | None) -> tuple[float, "Array"]:
    """The inverse penalty with the least log-loss on what was left out, and the coefficients with it.

    Every comparison is in twice, as AlpacaEval has it: won with its share as weight, and lost with the rest.
    """
    import numpy as np
    from sklearn.model_selection import GroupKFold

    features, shares, weights = _whole(asked, preferences, gamed)
    twice, labels = np.concatenate([features, features]), np.repeat([1, 0], len(features))
    sample = np.concatenate([shares * weights, (1 - shares) * weights])
    targets, counted = np.concatenate([shares, shares]), np.concatenate([weights, weights])
    folds = list(GroupKFold(FOLDS).split(twice, labels, np.tile(np.arange(len(features)), 2)))

    penalties = np.logspace(-4, 4, PENALTIES)
    losses = np.zeros(PENALTIES)
    for learnt, rest in folds:
        drawn = np.random.RandomState(SEED)  # one after another, as a path of penalties draws in scikit-learn
        for place, penalty in enumerate(penalties):
            found = _regress(twice[learnt], labels[learnt], sample[learnt], penalty, drawn)
            said = np.clip(_sigmoid(twice[rest] @ found), 1e-15, 1 - 1e-15)
            each = targets[rest] * np.log(said) + (1 - targets[rest]) * np.log(1 - said)
            losses[place] -= float(np.mean(each * counted[rest]))
    best = float(penalties[losses.argmin()])
    return best, _regress(twice, labels, sample, best, np.random.RandomState(SEED))


def _regress(features: "Array", labels: Any, weights: "Array", penalty: float, drawn: Any) -> "Array":
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=penalty, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=drawn)
    with warnings.catch_warnings(action="ignore"):  # a penalty that is no good converges late, and is not chosen
        coefficients: Array = model.fit(features, labels, weights).coef_[0]
    return coefficients


def _bootstrap(asked: "Array", preferences: "Array", gamed: Gamed | None, penalty: float) -> tuple[float, float]:
    """The 95 % interval of the rate; resamples are fitted by Newton's method with a ridge as weak as the penalty."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    rates = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(asked), len(asked))
        features, shares, weights = _whole(asked[drawn], preferences[drawn], gamed)
        found = _newton(features, shares, weights, 1 / penalty)
        level = asked[drawn].copy()
        level[:, 0] = 0.0
        rates.append(100 * float(_sigmoid(level @ found).mean()))
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def _newton(features: "Array", shares: "Array", weights: "Array", ridge: float) -> "Array":
    import numpy as np

    found: Array = np.zeros(features.shape[1])
    for _ in range(STEPS):
        said = _sigmoid(features @ found)
        gradient = features.T @ (weights * (shares - said)) - ridge * found
        curve = (features * (weights * said * (1 - said))[:, None]).T @ features + ridge * np.eye(len(found))
        step = np.linalg.solve(curve, gradient)
        found = found + step
        if float(np.abs(step).max()) < 1e-8:
            break
    return found


def _sigmoid(values: "Array") -> "Array":
    import numpy as np

    rates: Array = np.exp(-np.logaddexp(0, -values))
    return rates
