"""What the user sees: results on standard output, everything else on standard error."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

PLAIN_SECONDS = 10.0


class Screen:
    """Draws progress and results; with `as_json` standard output holds one JSON object and nothing else."""

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.out = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.err = Console(file=sys.stderr, highlight=False, soft_wrap=True)

    def show(self, result: dict[str, Any], *renderables: Any) -> None:
        """The result: the object as JSON, or its rendering for people."""
        if self.as_json:
            print(json.dumps(result, default=str), file=sys.stdout)  # noqa: T201  this is the output
            return
        for renderable in renderables:
            self.out.print(renderable)

    def say(self, line: str) -> None:
        """A sentence on the way."""
        if not self.quiet:
            self.err.print(Text(line))

    @contextmanager
    def watch(self, title: str) -> "Iterator[Watcher]":
        """Draw the progress of one stage: a bar on a terminal, plain lines in a pipe, nothing when quiet."""
        if self.quiet:
            yield Watcher(self, title)
        elif self.err.is_terminal:
            with _bar(self.err) as bar:
                yield BarWatcher(self, title, bar)
        else:
            yield PlainWatcher(self, title)


class Watcher:
    """Draws nothing but sentences; the base of the two that draw."""

    def __init__(self, screen: Screen, title: str) -> None:
        self.screen = screen
        self.title = title

    def say(self, line: str) -> None:
        """Pass a sentence on."""
        self.screen.say(f"{self.title}: {line}" if not line.startswith(self.title) else line)

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Drop the count."""


class BarWatcher(Watcher):
    """A bar on a terminal, one for each kind of work that the stage counts."""

    def __init__(self, screen: Screen, title: str, bar: Progress) -> None:
        super().__init__(screen, title)
        self._bar = bar
        self._tasks: dict[str, Any] = {}

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Move the bar of this kind of work."""
        if note not in self._tasks:
            self._tasks[note] = self._bar.add_task(f"{self.title} {note}", total=total)
        self._bar.update(self._tasks[note], completed=done, total=total)


class PlainWatcher(Watcher):
    """A line now and then, with the rate and the time left."""

    def __init__(self, screen: Screen, title: str) -> None:
        super().__init__(screen, title)
        self._began = time.monotonic()
        self._last = self._began
        self._first: dict[str, int] = {}

    def advance(self, done: int, total: int, note: str = "") -> None:
        """At most one line in ten seconds, and one at the end."""
        now = time.monotonic()
        first = self._first.setdefault(note, done)
        if now - self._last < PLAIN_SECONDS and done < total:
            return
        if done == total and now - self._began < PLAIN_SECONDS:
            return
        self._last = now
        rate = (done - first) / max(now - self._began, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        self.screen.say(f"{self.title}: {done} of {total} {note} ({rate:.1f}/s{left})")


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
