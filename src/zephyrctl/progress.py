"""The progress that a stage reports: commands show it, other callers may ignore it."""

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Receives the progress of a stage."""

    def say(self, line: str) -> None:
        """Report a message."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Report how much is done; `note` names what is counted."""

    def measure(self, values: Mapping[str, float]) -> None:
        """Report metrics of a training; any may be missing."""


class Silence:
    """Ignores all progress."""

    def say(self, line: str) -> None:
        """Ignore the message."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Ignore the count."""

    def measure(self, values: Mapping[str, float]) -> None:
        """Ignore the metrics."""
