"""Compute the win rate at equal lengths by AlpacaEval's logistic model (Dubois et al. 2024, arXiv 2404.04475)."""

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zephyrctl.errors import ZephyrError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]
    Labels = npt.NDArray[np.int64]

MINIMAL, WHOLE = "length_controlled_minimal", "length_controlled_v1"
"""AlpacaEval's names of the formula: without and with the difficulty of each instruction."""
GAMED_FILE = "df_gamed.csv"
GAMED_WEIGHT = 0.2 / 2
"""Weight of a gamed comparison. An instruction has two (a short and a long answer), 0.2 of a preference together."""
PENALTIES = 10
"""Inverse L1 penalties to choose from, evenly spaced in the logarithm from 1e-4 to 1e4."""
FOLDS = 5
SEED = 123
FEWEST = 20
"""Preferences below which no rate is fitted: each of five folds would have fewer than four."""
RESAMPLES = 200
MAX_ITERATIONS = 25


class LengthPair(NamedTuple):
    """The lengths of a model's answer and of the reference answer, in characters, and the instruction's position."""

    model: int
    reference: int
    position: int = 0


class LengthControlledRate(NamedTuple):
    """A win rate at equal lengths in per cent with its 95 % interval, and the name of the formula."""

    rate: float | None
    low: float | None
    high: float | None
    formula: str


@dataclass(frozen=True)
class Gamed:
    """What AlpacaEval 2 publishes in advance: how hard instructions are, and comparisons of its baseline with itself.

    In these comparisons the baseline was told to be brief or verbose, so they show what length alone does to a judge.
    """

    difficulty: dict[int, float]
    """Position of the instruction: its difficulty."""
    features: "Array"
    """[comparisons, 3]: tanh of the difference in length, difficulty, and 0: both sides are the same model."""
    preferences: "Array"
    """[comparisons]: share of a win, from 0 to 1."""


def read_gamed(path: Path) -> Gamed:
    """AlpacaEval's `df_gamed.csv`. Raises ZephyrError if a column is missing or is no number."""
    import numpy as np

    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        features = [[np.tanh(float(row["std_delta_len"])), float(row["instruction_difficulty"]), 0.0] for row in rows]
        # An instruction has several rows: reversed, so that the first of them counts.
        difficulty = {int(float(row["index"])): float(row["instruction_difficulty"]) for row in reversed(rows)}
        preferences = [float(row["preference"]) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ZephyrError(f"{path} is not AlpacaEval's {GAMED_FILE}: {error}", "remove it, or fetch it again") from None
    return Gamed(difficulty, np.array(features), np.array(preferences))


def length_controlled(
    preferences: Sequence[tuple[float, LengthPair]], gamed: Gamed | None = None
) -> LengthControlledRate:
    """The length-controlled win rate in per cent with its interval; None if there are fewer than 20 preferences.

    P(model wins) = sigmoid(a tanh(d) + b difficulty + c), where d = (reference length - model length) / its standard
    deviation. The rate is the mean at d = 0. Without `gamed` there is no difficulty term. The fit is AlpacaEval's: an
    L1 penalty chosen by five folds. The interval is a percentile bootstrap over instructions at that penalty.
    """
    import numpy as np

    name = WHOLE if gamed else MINIMAL
    lengths = [pair for _, pair in preferences]
    if len(preferences) < FEWEST or len({pair.reference - pair.model for pair in lengths}) == 1:
        return LengthControlledRate(None, None, None, name)
    features = _features(lengths, gamed)
    shares = np.array([share for share, _ in preferences])
    penalty, coefficients = _fit(features, shares, gamed)
    low, high = _bootstrap(features, shares, gamed, penalty)
    rate = _rate_at_equal_length(features, coefficients)
    return LengthControlledRate(round(rate, 6), round(low, 4), round(high, 4), name)


def _features(lengths: Sequence[LengthPair], gamed: Gamed | None) -> "Array":
    """[comparisons, 2 or 3]: tanh of the standardised difference in length, the difficulty if known, and 1."""
    import numpy as np

    differences = np.array([pair.reference - pair.model for pair in lengths], dtype=float)
    # tanh, because a judge hardly tells 3 from 4 standard deviations apart: the effect of length saturates.
    columns = [np.tanh(differences / differences.std(ddof=1))]
    if gamed:
        columns.append(np.array([gamed.difficulty.get(pair.position, 0.0) for pair in lengths]))
    # The column of ones belongs to the model's own quality. The penalty applies to it too, as in AlpacaEval.
    return np.column_stack([*columns, np.ones(len(lengths))])


def _rate_at_equal_length(features: "Array", coefficients: "Array") -> float:
    """The mean win probability in per cent if each answer were as long as the reference answer."""
    level = features.copy()
    level[:, 0] = 0.0
    return 100 * float(_sigmoid(level @ coefficients).mean())


def _with_gamed(features: "Array", shares: "Array", gamed: Gamed | None) -> tuple["Array", "Array", "Array"]:
    """Features, shares of a win and weights, with the gamed comparisons first if there are any."""
    import numpy as np

    if gamed is None:
        return features, shares, np.ones(len(features))
    weights = np.concatenate([np.full(len(gamed.features), GAMED_WEIGHT), np.ones(len(features))])
    return np.concatenate([gamed.features, features]), np.concatenate([gamed.preferences, shares]), weights


def _fit(features: "Array", shares: "Array", gamed: Gamed | None) -> tuple[float, "Array"]:
    """The inverse penalty with the least log-loss on the left-out folds, and the coefficients fitted with it."""
    import numpy as np
    from sklearn.model_selection import GroupKFold

    rows, targets, row_weights = _with_gamed(features, shares, gamed)
    # scikit-learn takes no soft labels, so each comparison is in twice: won, weighted with its share of a win, and
    # lost, weighted with the rest. Both copies have one group, so that no fold learns from what it is tested on.
    twice, labels = np.concatenate([rows, rows]), np.repeat([1, 0], len(rows))
    sample_weights = np.concatenate([targets * row_weights, (1 - targets) * row_weights])
    targets, weights = np.concatenate([targets, targets]), np.concatenate([row_weights, row_weights])
    folds = list(GroupKFold(FOLDS).split(twice, labels, np.tile(np.arange(len(rows)), 2)))

    penalties = np.logspace(-4, 4, PENALTIES)
    log_losses = np.zeros(PENALTIES)
    for train, test in folds:
        random = np.random.RandomState(SEED)  # shared by the penalties of a fold, as in LogisticRegressionCV
        for number, penalty in enumerate(penalties):
            coefficients = _regress(twice[train], labels[train], sample_weights[train], penalty, random)
            predicted = np.clip(_sigmoid(twice[test] @ coefficients), 1e-15, 1 - 1e-15)
            likelihood = targets[test] * np.log(predicted) + (1 - targets[test]) * np.log(1 - predicted)
            log_losses[number] -= float(np.mean(likelihood * weights[test]))
    best = float(penalties[log_losses.argmin()])
    return best, _regress(twice, labels, sample_weights, best, np.random.RandomState(SEED))


def _regress(
    features: "Array", labels: "Labels", weights: "Array", penalty: float, random: "np.random.RandomState"
) -> "Array":
    """The coefficients of an L1-penalised logistic regression; `penalty` is the inverse, as scikit-learn's C."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=penalty, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=random)
    with warnings.catch_warnings(action="ignore"):  # a bad penalty does not converge, and is not chosen
        coefficients: Array = model.fit(features, labels, weights).coef_[0]
    return coefficients


def _bootstrap(features: "Array", shares: "Array", gamed: Gamed | None, penalty: float) -> tuple[float, float]:
    """The 95 % interval of the rate in per cent, over resampled instructions."""
    import numpy as np

    generator = np.random.default_rng(SEED)
    rates = []
    for _ in range(RESAMPLES):
        indices = generator.integers(0, len(features), len(features))
        # The gamed comparisons are not resampled. A Newton fit with a ridge of the penalty's size stands in for the L1
        # fit of liblinear, which the point estimate has: 200 of them take 0.2 s.
        coefficients = _newton(*_with_gamed(features[indices], shares[indices], gamed), 1 / penalty)
        rates.append(_rate_at_equal_length(features[indices], coefficients))
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def _newton(features: "Array", shares: "Array", weights: "Array", ridge: float) -> "Array":
    """The coefficients of a ridge-penalised logistic regression on soft labels, by Newton's method."""
    import numpy as np

    coefficients: Array = np.zeros(features.shape[1])
    for _ in range(MAX_ITERATIONS):
        predicted = _sigmoid(features @ coefficients)
        gradient = features.T @ (weights * (shares - predicted)) - ridge * coefficients
        variance = weights * predicted * (1 - predicted)
        hessian = (features * variance[:, None]).T @ features + ridge * np.eye(len(coefficients))
        step = np.linalg.solve(hessian, gradient)
        coefficients = coefficients + step
        if float(np.abs(step).max()) < 1e-8:
            break
    return coefficients


def _sigmoid(values: "Array") -> "Array":
    """1 / (1 + exp(-x)), without overflow for large negative x."""
    import numpy as np

    probabilities: Array = np.exp(-np.logaddexp(0, -values))
    return probabilities
