"""What a user sees while a stage works: the bars, the figures of a training, and the lines of a pipe."""

import io
import math
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from zephyrctl.cli import watchers
from zephyrctl.cli.screen import Screen
from zephyrctl.cli.watchers import BarWatcher, PlainWatcher, ProgressBars, describe_speed, duration

LINE = {
    "step": 20,
    "epoch": 0.36,
    "loss": 0.46332602,
    "grad_norm": 1.95,
    "learning_rate": 1.46938e-4,
    "rewards/margins": 0.777264,
    "rewards/accuracies": 0.86875,
    "rewards/chosen": 0.15,
    "tokens_per_second": 12345.6,
    "mfu": 0.4137,
    "memory_gb": 33.958,
}
"""A line of dDPO's metrics."""
SHOWN = ["loss 0.4633", "margin 0.78", "accuracy 86.9%", "lr 1.47e-04", "12,346 tokens/s", "MFU 41.4%", "34.0 GB"]


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that the plain lines read."""
    made = Clock()
    monkeypatch.setattr(watchers, "time", SimpleNamespace(monotonic=made))
    return made


def drawn(width: int, *measured: dict[str, float], advance: tuple[int, int] = (20, 55)) -> list[str]:
    """What stands on a terminal of that width after a bar and these figures; each line without what pads it."""
    made = terminal(width)
    with made.watch("dpo") as watcher:
        assert isinstance(watcher, BarWatcher)
        watcher.advance(*advance, "steps")
        for values in measured:
            watcher.measure(values)
        bars = watcher._bar
    paper = Console(file=io.StringIO(), width=width, color_system=None, soft_wrap=True)
    paper.print(*bars.get_renderables())
    return [line.rstrip() for line in paper.file.getvalue().splitlines() if line.strip()]  # type: ignore[attr-defined]


def terminal(width: int) -> Screen:
    """A screen whose standard error is a terminal of that width."""
    made = Screen(as_json=False, quiet=False)
    made.err = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, soft_wrap=True)
    return made


def test_the_figures_of_a_training_stand_below_its_bar() -> None:
    bar, figures = drawn(120, LINE)
    assert bar.startswith("dpo steps") and "20/55" in bar
    assert figures == "  ".join(SHOWN)


def test_a_stage_without_figures_shows_its_bars_alone() -> None:
    assert len(drawn(120)) == 1
    assert len(drawn(120, {})) == 1
    assert len(drawn(120, {"eval_runtime": 3.0})) == 1


@pytest.mark.parametrize("width", [20, 40, 60, 79, 80, 100])
def test_a_narrow_terminal_shows_fewer_figures_and_each_one_whole(width: int) -> None:
    bar, figures = drawn(width, LINE)
    assert len(figures) <= width and len(bar) <= width
    shown = figures.split("  ")
    assert shown == SHOWN[: len(shown)]
    assert len("  ".join(SHOWN[: len(shown) + 1])) > width or len(shown) == len(SHOWN)


def test_the_terminal_itself_gets_no_line_that_is_wider() -> None:
    made = terminal(40)
    with made.watch("dpo") as watcher:
        watcher.advance(20, 55, "steps")
        watcher.measure(LINE)
    text = re.sub(r"\x1b\[[?\d]*[A-Za-z]", "", made.err.file.getvalue())  # type: ignore[attr-defined]
    assert "loss 0.4633" in text
    assert max(len(line) for line in re.split(r"[\r\n]+", text)) <= 40


def test_a_figure_that_a_line_has_not_keeps_its_last_value() -> None:
    assert drawn(120, LINE, {"loss": 0.25, "epoch": 1.0})[1] == "  ".join(["loss 0.2500", *SHOWN[1:]])


def test_what_is_no_number_is_shown_as_what_it_is() -> None:
    assert drawn(120, {"loss": math.nan, "mfu": math.inf})[1] == "loss nan  MFU inf%"


def test_time_left_is_told_for_steps_that_take_minutes() -> None:
    clock = Clock()
    console = Console(file=io.StringIO(), width=120, get_time=clock, color_system=None)
    bars = ProgressBars(console)
    task = bars.add_task("sft steps", total=10)
    for done in range(1, 5):
        clock.now += 300
        bars.update(task, completed=done)
    console.print(bars.get_renderable())
    assert "0:30:00" in console.file.getvalue()  # type: ignore[attr-defined]


def pipe(quiet: bool = False) -> Screen:
    """A screen whose standard error is no terminal."""
    made = Screen(as_json=False, quiet=quiet)
    made.err = Console(file=io.StringIO(), width=40, color_system=None, soft_wrap=True)
    return made


def printed(made: Screen) -> list[str]:
    """The lines on standard error."""
    lines: list[str] = made.err.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return lines


def test_a_pipe_gets_the_same_figures_in_one_line_at_most_every_ten_seconds(clock: Clock) -> None:
    made = pipe()
    with made.watch("dpo") as watcher:
        assert isinstance(watcher, PlainWatcher)
        for step in range(1, 56):
            clock.now += 1
            watcher.advance(step, 55, "steps")
            watcher.measure({**LINE, "step": step})
    lines = printed(made)
    assert len(lines) == 6
    assert lines[0] == f"dpo: 10 of 55 steps (1.0 s each, 45 s left, {', '.join(SHOWN)})"
    assert lines[-1] == f"dpo: 55 of 55 steps (1.0 s each, {', '.join(SHOWN)})"


def test_what_went_before_does_not_slow_the_pace_of_what_follows(clock: Clock) -> None:
    made = pipe()
    with made.watch("sft") as watcher:
        watcher.advance(0, 10, "rows tokenised")
        clock.now += 500
        watcher.advance(10, 10, "rows tokenised")
        for step in range(1, 101):
            clock.now += 0.5
            watcher.advance(step, 1000, "steps")
    assert printed(made)[0] == "sft: 10 of 10 rows tokenised (50.0 s each)"
    assert printed(made)[-1] == "sft: 100 of 1000 steps (2.0/s, 8 min left)"


def test_a_stage_of_less_than_ten_seconds_says_nothing_on_its_way(clock: Clock) -> None:
    made = pipe()
    with made.watch("dpo") as watcher:
        for step in range(1, 6):
            clock.now += 1
            watcher.advance(step, 5, "steps")
            watcher.measure(LINE)
    assert printed(made) == []


def test_quiet_draws_nothing_and_takes_every_word(clock: Clock) -> None:
    made = pipe(quiet=True)
    with made.watch("dpo") as watcher:
        clock.now += 60
        watcher.advance(20, 55, "steps")
        watcher.measure(LINE)
        watcher.say("step 20: the loss is rising")
    assert printed(made) == []


def test_a_sentence_of_two_lines_names_its_stage_once() -> None:
    made = pipe()
    with made.watch("dpo") as watcher:
        watcher.say("step 20: the loss is rising: 1.3 of late\n  lower dpo.learning_rate")
    assert printed(made) == ["dpo: step 20: the loss is rising: 1.3 of late", "  lower dpo.learning_rate"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (42.4, "42 s"), (99, "99 s"), (700, "12 min"), (7500, "2 h 5 min"), (200_000, "55 h 33 min")],
)
def test_times_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_there_is_no_pace_before_anything_is_done() -> None:
    assert describe_speed(0, 10.0, 5) == describe_speed(3, 0.0, 5) == []
    assert describe_speed(4, 2.0, 0) == ["2.0/s"]


@pytest.mark.parametrize("seconds", [0.001, 0.5, 1.0, 30.0, 4000.0])
def test_the_time_left_is_what_is_to_do_at_the_pace_so_far(seconds: float) -> None:
    assert describe_speed(1, seconds, 7)[1] == f"{duration(7 * seconds)} left"
