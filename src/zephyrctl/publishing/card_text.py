"""Format values for the Markdown of cards."""

from zephyrctl.evaluation.results import Estimate


def interval(estimate: Estimate, form: str) -> str:
    """`LOW to HIGH` in a format, or an empty text if the interval is unknown."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:{form}} to {estimate.high:{form}}"


def plain_number(value: float) -> str:
    """A whole number with thousands separators, or six significant digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def setting_value(value: object) -> str:
    """A setting as a table shows it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(setting_value, value))
    if isinstance(value, str) and "\n" in value.strip():
        return f"{len(value.strip().splitlines())} lines, in the manifest"
    return f"{value:.6g}" if isinstance(value, float) else one_line(value)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever is short."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def join_lines(note: str) -> str:
    """A note of several lines in one line."""
    return one_line("; ".join(line.strip() for line in note.splitlines()))


def one_line(value: object) -> str:
    """Text that breaks no Markdown table: without line breaks, and with its bars escaped."""
    return " ".join(str(value).split()).replace("|", "\\|")
