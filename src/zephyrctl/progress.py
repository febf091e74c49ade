"""What a stage tells whoever watches it; the commands draw it, tests and libraries may ignore it."""

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """A watcher of one stage."""

    def say(self, line: str) -> None:
        """One plain sentence."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        """So much is done of so much."""

    def measure(self, values: Mapping[str, float]) -> None:
        """The figures of a training as its last line of metrics has them; any may be missing."""


class Silence:
    """A watcher that draws nothing."""

    def say(self, line: str) -> None:
        """Drop the sentence."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Drop the count."""

    def measure(self, values: Mapping[str, float]) -> None:
        """Drop the figures."""
