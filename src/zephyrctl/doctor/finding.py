"""A finding: one fact about this machine, whether it matters, and its remedy."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]
GB = 1e9


@dataclass(frozen=True)
class Finding:
    """One fact. A `problem` stops the usual `zephyrctl run`; a `note` stops only what few people do, or nothing."""

    part: str
    state: State
    what: str
    remedy: str = ""


def ok(part: str, what: str) -> Finding:
    """A finding that needs no action."""
    return Finding(part, "ok", what)


def note(part: str, what: str, remedy: str) -> Finding:
    """Something to know, and its remedy."""
    return Finding(part, "note", what, remedy)


def problem(part: str, what: str, remedy: str) -> Finding:
    """Something that stops `zephyrctl run`, and its remedy."""
    return Finding(part, "problem", what, remedy)
