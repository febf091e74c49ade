"""Intervals: what a mean over prompts, a paired difference or a win rate is worth."""

import hashlib
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

RESAMPLES = 4000


class Estimate(BaseModel):
    """A mean over prompts with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    low: float
    high: float
    n: int


class WinRate(BaseModel):
    """How often one checkpoint's answer beats another's, a draw counting half, with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    win_rate: float
    low: float
    high: float
    wins: int
    losses: int
    draws: int


def estimate(values: Sequence[float], name: str) -> Estimate:
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
    return Estimate(
        mean=round(float(sample.mean()), 4),
        low=round(float(low), 4),
        high=round(float(high), 4),
        n=len(sample),
    )


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
