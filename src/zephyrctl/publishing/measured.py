"""What a manifest's metrics say, read so that a missing or broken value is None and never an error."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Z_95 = 1.959964
"""How many standard errors a 95 % interval reaches to either side."""


@dataclass(frozen=True)
class Estimate:
    """A mean or a rate with its 95 % interval, over `n` prompts; what was not recorded is None."""

    mean: float
    low: float | None
    high: float | None
    n: int | None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def real(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def words(value: Any) -> tuple[str, ...]:
    """The texts of a list, or nothing where it is no list."""
    return tuple(str(one) for one in value) if isinstance(value, list | tuple) else ()


def estimate(value: Any, key: str = "mean") -> Estimate | None:
    """What stands under `key` with `low`, `high` and `n` beside it, or None where there is no such number."""
    values = mapping(value)
    mean, low, high, n = (real(values.get(name)) for name in (key, "low", "high", "n"))
    return None if mean is None else Estimate(mean, low, high, None if n is None else int(n))


def around(mean: float, error: float | None) -> Estimate:
    """A mean with the interval of its standard error, where there is one."""
    if error is None:
        return Estimate(mean, None, None, None)
    return Estimate(mean, mean - Z_95 * error, mean + Z_95 * error, None)
