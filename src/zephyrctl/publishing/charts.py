"""Where the marks of a chart lie: ticks, lines and whiskers as coordinates for the report's template."""

import bisect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 46
MOST_POINTS = 400

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Scale:
    """A horizontal axis in per cent of its cell; the ends keep 4 % free so that no dot is cut."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """Where a value lies, from 4 to 96; what is out of bounds stays at the edge."""
        return _percent(value, self.low, self.high)


@dataclass(frozen=True)
class Whisker:
    """A dot and its interval on a scale."""

    at: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Series:
    """One line of a chart; `tone` is the CSS class that colours it.

    `reaches` are the intervals of its points where they have any.
    """

    label: str
    tone: str
    points: Sequence[Point]
    dash: int = 0
    reaches: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class Line:
    """A series as an SVG path, with dots where it is too short to be seen as a line."""

    label: str
    tone: str
    path: str
    dots: tuple[Point, ...]
    dash: int = 0
    reaches: tuple[tuple[float, float, float], ...] = ()
    """(x, y, y) of each interval."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """The frame of a chart, in units of its view box."""

    id: str
    title: str
    description: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True, kw_only=True)
class LineChart(Chart):
    """Everything that a line chart shows."""

    lines: tuple[Line, ...]
    reference: Tick | None
    unit: str


@dataclass(frozen=True)
class Bar:
    """One bar of a chart, in units of its view box."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Bars:
    """The bars of one series."""

    label: str
    tone: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True)
class BarChart(Chart):
    """Everything that a bar chart shows."""

    unit: str
    series: tuple[Bars, ...]


Counts = tuple[str, str, Sequence[float]]
"""The name of a series, its tone, and one value a group."""


def bar_chart(
    id: str,
    title: str,
    unit: str,
    groups: Sequence[str],
    series: Sequence[Counts],
    every: int = 1,
    named_at: float = 0.5,
) -> BarChart | None:
    """Bars in groups, one of each series; None where nothing is counted.

    Every `every`-th group is named, at its middle, or at its left edge where `named_at` is 0, as histograms want it.
    """
    most = max((value for _, _, values in series for value in values), default=0)
    if not most:
        return None
    levels = round_numbers(0.0, most)
    down = HEIGHT - TOP - BOTTOM
    step = (WIDTH - LEFT - RIGHT) / len(groups)
    width = step * 0.84 / len(series)

    def bar(group: int, number: int, value: float) -> Bar:
        height = down * value / levels[-1]
        left = LEFT + step * (group + 0.08) + width * number
        return Bar(round(left, 1), round(HEIGHT - BOTTOM - height, 1), round(width, 1), round(height, 1))

    named = [(LEFT + step * (place + named_at), name) for place, name in enumerate(groups) if place % every == 0]
    return BarChart(
        id=id,
        title=title,
        description=" ".join(_summed(label, groups, values) for label, _, values in series),
        unit=unit,
        x_ticks=tuple(Tick(round(at, 1), name) for at, name in named),
        y_ticks=tuple(
            Tick(round(HEIGHT - BOTTOM - down * value / levels[-1], 1), label) for value, label in labelled(levels)
        ),
        series=tuple(
            Bars(label, tone, tuple(bar(group, number, value) for group, value in enumerate(values)))
            for number, (label, tone, values) in enumerate(series)
        ),
    )


def bins(values: Iterable[Sequence[float]], count: int = 12) -> list[float]:
    """The edges of about so many bins over the middle 98 % of all values; what lies outside belongs to the end bins."""
    ordered = sorted(value for one in values for value in one)
    low, high = ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]
    return round_numbers(low, high, count)


def binned(values: Iterable[float], edges: Sequence[float]) -> list[int]:
    """How many values lie in each bin; those beyond the edges are in the first and the last."""
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(max(bisect.bisect_right(edges, value) - 1, 0), len(counts) - 1)] += 1
    return counts


def line_chart(
    id: str,
    title: str,
    series: Iterable[Series],
    reference: tuple[float, str] | None = None,
    bounds: Iterable[float] = (),
    unit: str = "step",
) -> LineChart | None:
    """Series over training steps or another unit; None where none has a point.

    `reference` is a level to draw with its name, `bounds` are values that the vertical axis must reach.
    """
    shown = [one for one in series if one.points]
    if not shown:
        return None
    levels = [y for one in shown for _, y in one.points] + ([reference[0]] if reference else []) + list(bounds)
    levels += [level for one in shown for reach in one.reaches if reach for level in reach]
    y_values = round_numbers(min(levels), max(levels))
    last = max(x for one in shown for x, _ in one.points) or 1.0
    x_values = [value for value in round_numbers(0.0, last) if value <= last]

    def place(point: Point) -> Point:
        across = LEFT + (WIDTH - LEFT - RIGHT) * point[0] / last
        down = TOP + (HEIGHT - TOP - BOTTOM) * (y_values[-1] - point[1]) / (y_values[-1] - y_values[0])
        return round(across, 1), round(down, 1)

    return LineChart(
        id=id,
        title=title,
        description=" ".join(_described(one, unit) for one in shown),
        x_ticks=tuple(Tick(place((value, 0.0))[0], label) for value, label in labelled(x_values)),
        y_ticks=tuple(Tick(place((0.0, value))[1], label) for value, label in labelled(y_values)),
        lines=tuple(_line(one, place) for one in shown),
        reference=Tick(place((0.0, reference[0]))[1], reference[1]) if reference else None,
        unit=f"{unit}s",
    )


def scale(values: Iterable[float]) -> Scale:
    """An axis over round numbers that reaches every value, and zero."""
    reached = [0.0, *values]
    marks = round_numbers(min(reached), max(reached), 4)
    return scale_over(marks)


def scale_over(marks: Sequence[float]) -> Scale:
    """An axis from the first mark to the last."""
    low, high = marks[0], marks[-1]
    return Scale(low, high, tuple(Tick(_percent(value, low, high), label) for value, label in labelled(marks)))


def whisker(axis: Scale, mean: float, low: float | None, high: float | None) -> Whisker:
    """A mean and its interval, placed on an axis."""
    if low is None or high is None:
        return Whisker(axis.at(mean), None, None)
    return Whisker(axis.at(mean), axis.at(low), axis.at(high))


def round_numbers(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` numbers that cover a range, 1, 2, 2.5 or 5 times a power of ten apart."""
    span = (high - low) or abs(high) or 1.0
    rough = span / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    """Values with what an axis says for them: just the decimals that tell them apart."""
    if max(map(abs, values)) < 0.01:
        return [(value, _scientific(value)) for value in values]
    step = min((right - left for left, right in pairwise(values)), default=1.0)
    decimals = next(places for places in range(8) if abs(round(step, places) - step) < step / 1000)
    return [(value, f"{value + 0.0:,.{decimals}f}".replace("-", "−")) for value in values]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Every k-th point and the last one, so that a long run keeps the file small."""
    stride = math.ceil(len(points) / most)
    kept = list(points[::stride])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _line(series: Series, place: Callable[[Point], Point]) -> Line:
    placed = [place(point) for point in thinned(series.points)]
    path = "M" + " L".join(f"{x:g},{y:g}" for x, y in placed)
    dots = tuple(placed) if len(placed) <= 12 or series.reaches else ()
    reaches = tuple(
        (*place((x, reach[0])), place((x, reach[1]))[1])
        for (x, _), reach in zip(series.points, series.reaches, strict=False)
        if reach
    )
    return Line(series.label, series.tone, path, dots, series.dash, reaches)


def _described(series: Series, unit: str) -> str:
    (first_x, first_y), (last_x, last_y) = series.points[0], series.points[-1]
    label = series.label[:1].upper() + series.label[1:]
    if len(series.points) == 1:
        return f"{label}: {first_y:.4g} at {unit} {first_x:g}."
    return f"{label}: from {first_y:.4g} at {unit} {first_x:g} to {last_y:.4g} at {unit} {last_x:g}."


def _summed(label: str, groups: Sequence[str], values: Sequence[float]) -> str:
    most = max(range(len(values)), key=values.__getitem__)
    return f"{label.capitalize()}: {sum(values):g} in all, most at {groups[most]} ({values[most]:g})."


def _percent(value: float, low: float, high: float) -> float:
    share = (min(max(value, low), high) - low) / (high - low)
    return round(4 + 92 * share, 2)


def _scientific(value: float) -> str:
    if not value:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
