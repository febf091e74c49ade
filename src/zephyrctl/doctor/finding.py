"""What a finding is: one fact about this machine, whether it matters, and its remedy."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]
GB = 1e9


@dataclass(frozen=True)
class Finding:
    """A fact. A `note` stops nothing or only what not everybody does; a `problem` stops the usual `zephyrctl run`."""

    part: str
    state: State
    what: str
    remedy: str = ""


def ok(part: str, what: str) -> Finding:
    """As it should be."""
    return Finding(part, "ok", what)


def note(part: str, what: str, remedy: str) -> Finding:
    """Something to know, and what mends it."""
    return Finding(part, "note", what, remedy)


def problem(part: str, what: str, remedy: str) -> Finding:
    """Something that stops `zephyrctl run`, and what mends it."""
    return Finding(part, "problem", what, remedy)
