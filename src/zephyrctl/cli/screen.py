"""What the user sees: results on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from zephyrctl.cli.watchers import Watcher


def plain(text: str) -> str:
    """A text whose control characters are spelt out: what a model says must not steer the terminal."""
    return "".join(mark if mark.isprintable() or mark in "\n\t" else ascii(mark)[1:-1] for mark in text)


class Screen:
    """Draws progress and results; with `as_json` standard output holds one JSON object and nothing else."""

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.out = Console(file=sys.stdout, highlight=False, emoji=False, soft_wrap=True)
        self.err = Console(file=sys.stderr, highlight=False, emoji=False, soft_wrap=True)

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
        from zephyrctl.cli.watchers import Bars, BarWatcher, PlainWatcher, Watcher

        if self.quiet:
            yield Watcher(self.say, title)
        elif self.err.is_terminal:
            with Bars(self.err) as bar:
                yield BarWatcher(self.say, title, bar)
        else:
            yield PlainWatcher(self.say, title)
