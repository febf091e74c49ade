"""The progress of a stage: a bar on a terminal, plain lines in a pipe."""

import time
from collections.abc import Callable, Iterable, Mapping

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

PLAIN_SECONDS = 10.0
ESTIMATE_SECONDS = 3600.0
"""The time left is estimated from this much past. Within rich's default, 30 s, a large model may not make two steps."""
METRICS = {
    "loss": "loss {:.4f}",
    "rewards/margins": "margin {:.2f}",
    "rewards/accuracies": "accuracy {:.1%}",
    "learning_rate": "lr {:.2e}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "memory_gb": "{:.1f} GB",
}
"""The metrics that are shown and their formats, the most important first: a narrow terminal cuts the end off."""


class Watcher:
    """Shows messages and no progress; the base of the two that do."""

    def __init__(self, say: Callable[[str], None], title: str) -> None:
        self._say = say
        self.title = title

    def say(self, line: str) -> None:
        """Print a message under the title of the stage."""
        self._say(f"{self.title}: {line}" if not line.startswith(self.title) else line)

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Ignore the count."""

    def measure(self, values: Mapping[str, float]) -> None:
        """Ignore the metrics."""


class BarWatcher(Watcher):
    """Bars on a terminal, one for each kind of work that the stage counts, with training metrics below them."""

    def __init__(self, say: Callable[[str], None], title: str, bar: "ProgressBars") -> None:
        super().__init__(say, title)
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Move the bar of this kind of work."""
        if note not in self._tasks:
            self._tasks[note] = self._bar.add_task(f"{self.title} {note}", total=total)
        self._bar.update(self._tasks[note], completed=done, total=total)

    def measure(self, values: Mapping[str, float]) -> None:
        """Show the metrics; those without a new value keep their last one."""
        self._bar.metrics.update(values)


class PlainWatcher(Watcher):
    """A line every ten seconds, with the speed, the time left and the metrics of a training."""

    def __init__(self, say: Callable[[str], None], title: str) -> None:
        super().__init__(say, title)
        self._began = time.monotonic()
        self._last = self._began
        self._first: dict[str, tuple[int, float]] = {}
        self._metrics = MetricLine()

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Print at most one line in ten seconds, and one at the end of long work."""
        now = time.monotonic()
        first, since = self._first.setdefault(note, (done, now))
        if now - self._last < PLAIN_SECONDS and done < total:
            return
        if done == total and now - self._began < PLAIN_SECONDS:
            return
        self._last = now
        facts = ", ".join([*describe_speed(done - first, now - since, total - done), *self._metrics.parts()])
        self._say(f"{self.title}: {done} of {total} {note}" + (f" ({facts})" if facts else ""))

    def measure(self, values: Mapping[str, float]) -> None:
        """Keep the metrics for the next line."""
        self._metrics.update(values)


class MetricLine:
    """The metrics of a training in one line; it shows as many as fit into the width."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def update(self, values: Mapping[str, float]) -> None:
        """Take new values; the others keep their last one."""
        self._values |= {key: values[key] for key in METRICS if key in values}

    def parts(self) -> list[str]:
        """Every known metric with its name or unit."""
        return [form.format(self._values[key]) for key, form in METRICS.items() if key in self._values]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts = self.parts()
        while parts and cell_len("  ".join(parts)) > options.max_width:
            parts.pop()
        if parts:
            yield Text("  ".join(parts))


class ProgressBars(Progress):
    """Progress bars, and the metrics of a training below them."""

    def __init__(self, console: Console) -> None:
        self.metrics = MetricLine()
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=ESTIMATE_SECONDS,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, then the metrics."""
        yield from super().get_renderables()
        yield self.metrics


def describe_speed(done: int, seconds: float, todo: int) -> list[str]:
    """The speed and the time left, as texts; none before anything is done."""
    if done <= 0 or seconds <= 0:
        return []
    each = seconds / done
    speed = f"{1 / each:.1f}/s" if each < 1 else f"{each:.1f} s each"
    return [speed, f"{duration(todo * each)} left"] if todo else [speed]


def duration(seconds: float) -> str:
    """A duration for people: 42 s, 12 min, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
