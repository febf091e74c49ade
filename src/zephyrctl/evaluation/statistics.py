"""Compute confidence intervals, p values and the number of questions that a comparison needs."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

from zephyrctl.evaluation.results import Difference, MeanEstimate, WinRate

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

RESAMPLES = 4000
"""Bootstrap resamples: the ends of a 95 % interval rest on the 100 lowest and the 100 highest means."""
FLIPS = 20_000
"""Random sign flips of the randomisation test: the smallest p value is 1 / 20,001."""
EXACT = 14
"""Up to this many questions the test goes through every way to flip signs: 2^14 = 16,384 at most."""
LEVEL = 0.95
POWER = 0.8
BLOCK = 2**22
"""Random numbers drawn at once: 32 MiB of int64."""

Clusters = Sequence[Sequence[float]]
"""The values of each question, one per turn or judgment. They depend on each other, so they are resampled together."""


def estimate(values: Sequence[float], name: str) -> MeanEstimate:
    """The mean and its 95 % percentile-bootstrap interval (Efron 1979); `name` seeds the resamples.

    Give one value per prompt: a conversation of two turns gives its mean. Raises ValueError if there are no values.
    """
    import numpy as np  # 0.1 s that only an evaluation pays

    sample = np.asarray(values, dtype=float)
    if not len(sample):
        raise ValueError("no values to estimate a mean from")
    # Row i of [RESAMPLES, n] indexes the prompts of resample i, drawn with replacement.
    indices = _generator(name).integers(0, len(sample), (RESAMPLES, len(sample)))
    low, high = np.quantile(sample[indices].mean(axis=1), [0.025, 0.975])
    return MeanEstimate(
        mean=round(float(sample.mean()), 4),
        low=round(float(low), 4),
        high=round(float(high), 4),
        n=len(sample),
    )


def interval(clusters: Clusters, name: str) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of the mean over all values. Questions are resampled; `name` is the seed.

    The mean is over all values together, as in MT-Bench, so a question with fewer values has less weight (a ratio
    estimate: Efron and Tibshirani 1993, chapter 8). Raises ValueError if there are no values.
    """
    import numpy as np

    sums = np.array([math.fsum(values) for values in clusters if len(values)])
    counts = np.array([len(values) for values in clusters if len(values)], dtype=float)
    if not len(sums):
        raise ValueError("no values to give an interval of")
    generator = _generator(name)
    means = []
    for rows in _block_sizes(RESAMPLES, len(sums)):
        indices = generator.integers(0, len(sums), (rows, len(sums)))
        # Both parts of the ratio vary: a resample can draw questions of one turn more often than those of two.
        means.append(sums[indices].sum(axis=1) / counts[indices].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired(clusters: Clusters, name: str) -> Difference:
    """The mean of differences, clustered by question, with its interval, p value and the number of questions needed.

    `p` is that of the randomisation test (Fisher 1935): the share of sign flips, one per question, whose mean is at
    least as far from 0. `needed` is how many questions would show this difference in a two-sided test at 5 % with a
    power of 80 %, in a normal approximation; None if the difference is 0.
    """
    import numpy as np

    given = [values for values in clusters if len(values)]
    low, high = interval(given, name)
    sums = np.array([math.fsum(values) for values in given])
    total = sum(len(values) for values in given)
    mean = float(sums.sum() / total)
    means = np.array([math.fsum(values) / len(values) for values in given])
    p = _randomisation_p(sums, name)
    return Difference(mean=mean, low=low, high=high, n=len(given), p=p, needed=_needed_questions(mean, means))


def unpaired(mean: float, error: float) -> tuple[float, float, float]:
    """The 95 % interval (low, high) and p value of a difference with a known standard error (normal approximation)."""
    normal = NormalDist()
    reach = normal.inv_cdf((1 + LEVEL) / 2) * error  # 1.96 standard errors on each side
    p = 2 * (1 - normal.cdf(abs(mean) / error)) if error else float(mean == 0)
    return mean - reach, mean + reach, p


def around(mean: float, error: float) -> tuple[float, float]:
    """The 95 % interval of a mean with a known standard error."""
    low, high, _ = unpaired(mean, error)
    return low, high


def _randomisation_p(sums: "Array", name: str) -> float:
    """The p value of the randomisation test. `sums` has the summed difference of each question: [questions].

    If both models are equally good, each question's difference could as well have the other sign.
    """
    import numpy as np

    # Adding the same numbers in another order changes the last bits: 1e-12 lets such a tie count as one.
    observed = abs(sums.sum()) * (1 - 1e-12)
    if len(sums) <= EXACT:
        # Bit i of the pattern decides the sign of question i, so 0 .. 2^n - 1 are all ways: [2^n, questions].
        patterns = range(2 ** len(sums))
        signs = np.array([[1 - 2 * (pattern >> bit & 1) for bit in range(len(sums))] for pattern in patterns])
        return float(np.mean(np.abs(signs @ sums) >= observed))
    generator = _generator(f"{name}: p")
    as_far = 0
    for rows in _block_sizes(FLIPS, len(sums)):
        signs = generator.integers(0, 2, (rows, len(sums)), dtype=np.int8) * 2 - 1
        as_far += int(np.sum(np.abs(signs @ sums) >= observed))
    # The observed signs are one of the possible ways too. Without the + 1 p could be 0 (Phipson and Smyth 2010).
    return (as_far + 1) / (FLIPS + 1)


def _block_sizes(rows: int, width: int) -> Iterator[int]:
    """Rows to draw at once. MMLU has 14,042 questions: 4,000 resamples of them at once would take 450 MB."""
    most = max(1, BLOCK // width)
    for start in range(0, rows, most):
        yield min(most, rows - start)


def _needed_questions(mean: float, differences: "Array") -> int | None:
    """n = ((z(0.975) + z(0.8)) std / mean)^2 = (2.80 std / mean)^2, with the std of the questions' differences."""
    if not mean or len(differences) < 2:
        return None
    normal = NormalDist()
    reach = normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)
    spread = float(differences.std(ddof=1))
    return max(2, math.ceil((reach * spread / mean) ** 2))


def _generator(name: str) -> "np.random.Generator":
    """A generator with the seed that follows from the name, so that a repeated evaluation gives the same interval."""
    import numpy as np

    return np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation; tied values have their mean rank. None if one side does not vary."""
    import numpy as np

    if len(pairs) < 2:
        return None
    first, second = (np.asarray(_ranks(values)) for values in zip(*pairs, strict=True))
    if not first.std() or not second.std():
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, from 0."""
    ranks: dict[float, list[int]] = {}
    for rank, value in enumerate(sorted(values)):
        ranks.setdefault(value, []).append(rank)
    mean_ranks = {value: sum(tied) / len(tied) for value, tied in ranks.items()}
    return [mean_ranks[value] for value in values]


def win_rate(outcomes: Sequence[float], name: str) -> WinRate:
    """The win rate of outcomes that are 1.0 (win), 0.5 (draw) or 0.0 (loss), with its interval and counts."""
    rate = estimate(outcomes, name)
    return WinRate(
        win_rate=rate.mean,
        low=rate.low,
        high=rate.high,
        wins=sum(outcome == 1.0 for outcome in outcomes),
        losses=sum(outcome == 0.0 for outcome in outcomes),
        draws=sum(outcome == 0.5 for outcome in outcomes),
    )
