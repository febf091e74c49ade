"""What a mean, a paired difference or a win rate is worth: intervals, p values, and how many questions would tell."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

from zephyrctl.evaluation.results import Difference, MeanEstimate, WinRate

RESAMPLES = 4000
FLIPS = 20_000
EXACT = 14
"""Up to so many questions every way to flip signs is gone through, 16,384 at most."""
LEVEL = 0.95
POWER = 0.8
BLOCK = 2**22
"""Numbers that are drawn at once."""

Clusters = Sequence[Sequence[float]]
"""The values of each question: they were asked together, and are drawn together."""


def estimate(values: Sequence[float], name: str) -> MeanEstimate:
    """The mean and its percentile-bootstrap interval (Efron 1979), resampling prompts; seeded by `name`.

    One value a prompt: a conversation of two turns gives their mean, so that it is resampled whole.
    """
    import numpy as np  # 0.1 s that only an evaluation pays

    sample = np.asarray(values, dtype=float)
    if not len(sample):
        raise ValueError("no values to estimate a mean from")
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    drawn = np.random.default_rng(seed).integers(0, len(sample), (RESAMPLES, len(sample)))
    low, high = np.quantile(sample[drawn].mean(axis=1), [0.025, 0.975])
    return MeanEstimate(
        mean=round(float(sample.mean()), 4),
        low=round(float(low), 4),
        high=round(float(high), 4),
        n=len(sample),
    )


def interval(clusters: Clusters, name: str) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of the mean over all values, resampling questions; seeded by `name`.

    The mean is that of all values together, as MT-Bench takes it, so a question that lacks one weighs less (a ratio
    estimate: Efron and Tibshirani 1993, chapter 8 on clustered data).
    """
    import numpy as np

    sums = np.array([math.fsum(values) for values in clusters if len(values)])
    counts = np.array([len(values) for values in clusters if len(values)], dtype=float)
    if not len(sums):
        raise ValueError("no values to give an interval of")
    generator = _generator(name)
    means = []
    for rows in _blocks(RESAMPLES, len(sums)):
        drawn = generator.integers(0, len(sums), (rows, len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired(clusters: Clusters, name: str) -> Difference:
    """The mean of differences, clustered by question, with interval, p value and the questions that would tell.

    `p` is that of the randomisation test: the share of the ways to swap the two models, question by question, that
    give a mean at least as far from 0 (Fisher 1935; all ways up to 14 questions, 20,000 drawn ones beyond, counted
    with the one that was seen). `needed` is how many questions would show this difference, two-sided at 5 % with a
    power of 80 %, in a normal approximation; None where there is no difference to see.
    """
    import numpy as np

    given = [values for values in clusters if len(values)]
    low, high = interval(given, name)
    sums = np.array([math.fsum(values) for values in given])
    total = sum(len(values) for values in given)
    mean = float(sums.sum() / total)
    means = np.array([math.fsum(values) / len(values) for values in given])
    return Difference(
        mean=mean, low=low, high=high, n=len(given), p=_randomised(sums, name), needed=_needed(mean, means)
    )


def unpaired(mean: float, error: float) -> tuple[float, float, float]:
    """Low, high and p of a difference whose standard error is known, in a normal approximation."""
    normal = NormalDist()
    reach = normal.inv_cdf((1 + LEVEL) / 2) * error
    p = 2 * (1 - normal.cdf(abs(mean) / error)) if error else float(mean == 0)
    return mean - reach, mean + reach, p


def around(mean: float, error: float) -> tuple[float, float]:
    """The 95 % interval about a mean whose standard error is known."""
    low, high, _ = unpaired(mean, error)
    return low, high


def _randomised(sums: Any, name: str) -> float:
    import numpy as np

    seen = abs(sums.sum()) * (1 - 1e-12)  # equal sums in another order count
    if len(sums) <= EXACT:
        signs = np.array([[1 - 2 * (way >> place & 1) for place in range(len(sums))] for way in range(2 ** len(sums))])
        return float(np.mean(np.abs(signs @ sums) >= seen))
    generator = _generator(f"{name}: p")
    as_far = 0
    for rows in _blocks(FLIPS, len(sums)):
        signs = generator.integers(0, 2, (rows, len(sums)), dtype=np.int8) * 2 - 1
        as_far += int(np.sum(np.abs(signs @ sums) >= seen))
    return (as_far + 1) / (FLIPS + 1)


def _blocks(rows: int, width: int) -> Iterator[int]:
    """Rows to draw at once: MMLU has 14,042 questions, and 4,000 times as many numbers would fill the memory."""
    most = max(1, BLOCK // width)
    for start in range(0, rows, most):
        yield min(most, rows - start)


def _needed(mean: float, differences: Any) -> int | None:
    if not mean or len(differences) < 2:
        return None
    normal = NormalDist()
    reach = normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)
    spread = float(differences.std(ddof=1))
    return max(2, math.ceil((reach * spread / mean) ** 2))


def _generator(name: str) -> Any:
    import numpy as np

    return np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's correlation, ties at their mean rank; None where one side does not vary."""
    import numpy as np

    if len(pairs) < 2:
        return None
    one, other = (np.asarray(_ranks(values)) for values in zip(*pairs, strict=True))
    if not one.std() or not other.std():
        return None
    return float(np.corrcoef(one, other)[0, 1])


def _ranks(values: Sequence[float]) -> list[float]:
    places: dict[float, list[int]] = {}
    for rank, value in enumerate(sorted(values)):
        places.setdefault(value, []).append(rank)
    ranks: Mapping[float, float] = {value: sum(found) / len(found) for value, found in places.items()}
    return [ranks[value] for value in values]


def win_rate(outcomes: Sequence[float], name: str) -> WinRate:
    """The rate of 1.0 (win), 0.5 (draw) and 0.0 (loss) outcomes."""
    rate = estimate(outcomes, name)
    return WinRate(
        win_rate=rate.mean,
        low=rate.low,
        high=rate.high,
        wins=sum(outcome == 1.0 for outcome in outcomes),
        losses=sum(outcome == 0.0 for outcome in outcomes),
        draws=sum(outcome == 0.5 for outcome in outcomes),
    )
