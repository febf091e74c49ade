"""Print results to standard output, and progress and messages to standard error."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.text import Text

if TYPE_CHECKING:
    from zephyrctl.cli.watchers import Watcher


def plain(text: str) -> str:
    """The text with control characters escaped: text from a model must not control the terminal."""
    return "".join(mark if mark.isprintable() or mark in "\n\t" else ascii(mark)[1:-1] for mark in text)


class Screen:
    """The terminal of a command. With `as_json`, standard output gets one JSON object and nothing else."""

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.out = Console(file=sys.stdout, highlight=False, emoji=False, soft_wrap=True)
        self.err = Console(file=sys.stderr, highlight=False, emoji=False, soft_wrap=True)

    def show(self, result: Mapping[str, object], *renderables: RenderableType) -> None:
        """Print the result: the object as JSON, or the renderables for people."""
        if self.as_json:
            print(json.dumps(result, default=str), file=sys.stdout)  # noqa: T201  this is the output
            return
        for renderable in renderables:
            self.out.print(renderable)

    def say(self, line: str) -> None:
        """Print a message to standard error, unless quiet."""
        if not self.quiet:
            self.err.print(Text(line))

    @contextmanager
    def watch(self, title: str) -> "Iterator[Watcher]":
        """Show the progress of one stage: a bar on a terminal, plain lines in a pipe, only messages if quiet."""
        from zephyrctl.cli.watchers import BarWatcher, PlainWatcher, ProgressBars, Watcher

        if self.quiet:
            yield Watcher(self.say, title)
        elif self.err.is_terminal:
            with ProgressBars(self.err) as bar:
                yield BarWatcher(self.say, title, bar)
        else:
            yield PlainWatcher(self.say, title)
