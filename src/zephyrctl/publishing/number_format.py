"""Format numbers, intervals, durations, times, sizes and lists for the report."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

ABSENT = "–"


def number(value: float, sign: str = "", places: int = 2) -> str:
    """A number with fixed decimals and a true minus sign; a value that rounds to zero has no sign."""
    rounded = round(value, places) + 0.0
    return f"{rounded:{sign if rounded else ''}.{places}f}".replace("-", "−")


def interval(low: float | None, high: float | None, sign: str = "", places: int = 2) -> str:
    """`[low, high]`, or an empty text if one of them is unknown."""
    if low is None or high is None:
        return ""
    return f"[{number(low, sign, places)}, {number(high, sign, places)}]"


def count(n: float | None) -> str:
    """A count with thousands separators, or a dash."""
    return ABSENT if n is None else f"{n:,.0f}"


def duration(seconds: float) -> str:
    """Seconds, minutes and seconds, or hours and minutes."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def utc_minute(text: str) -> str:
    """An ISO time in UTC, to the minute; any other text unchanged."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if time.tzinfo else text


def size(bytes: int) -> str:
    """A size in the largest unit that keeps it below 1,000."""
    left, units = float(bytes), ["B", "kB", "MB", "GB", "TB"]
    while left >= 999.5 and len(units) > 1:
        left, units = left / 1000, units[1:]
    return f"{left:.0f} {units[0]}" if units[0] == "B" or left >= 99.5 else f"{left:.1f} {units[0]}"


def join_words(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def anchor(name: str) -> str:
    """The HTML id of an artifact's section."""
    return "artifact-" + re.sub(r"[^A-Za-z0-9_-]+", "-", name)
