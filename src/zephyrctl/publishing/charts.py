"""Compute the coordinates of charts: ticks, lines, bars and intervals, which the templates turn into SVG."""

import bisect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 46
"""The margins of the plot area, in the units of the SVG view box: room for labels on the left and below."""
MOST_POINTS = 400
MARGIN_PERCENT = 4
"""The free share at each end of a horizontal axis, so that a dot at its end is not cut off."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A position on an axis and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Scale:
    """A horizontal axis whose positions are per cent of its table cell."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """The position of a value, from 4 to 96 per cent; a value out of bounds is at the nearest end."""
        return _percent(value, self.low, self.high)


@dataclass(frozen=True)
class Whisker:
    """A dot and its interval on a scale, in per cent."""

    at: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Series:
    """One line of a chart, in the units of the data; `colour` is the CSS class that colours it.

    `intervals` has an entry for each point, or is empty.
    """

    label: str
    colour: str
    points: Sequence[Point]
    dash: int = 0
    intervals: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class DrawnLine:
    """A series as an SVG path, with dots if it has few points."""

    label: str
    colour: str
    path: str
    dots: tuple[Point, ...]
    dash: int = 0
    intervals: tuple[tuple[float, float, float], ...] = ()
    """(x, y of the low end, y of the high end) of each interval."""


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

    lines: tuple[DrawnLine, ...]
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
class BarSeries:
    """The bars of one series."""

    label: str
    colour: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True)
class BarChart(Chart):
    """Everything that a bar chart shows."""

    unit: str
    series: tuple[BarSeries, ...]


NamedValues = tuple[str, str, Sequence[float]]
"""The label of a series, its colour, and its values: one for each group of a bar chart."""


def bar_chart(
    id: str,
    title: str,
    unit: str,
    groups: Sequence[str],
    series: Sequence[NamedValues],
    every: int = 1,
    label_at: float = 0.5,
) -> BarChart | None:
    """Grouped bars, one of each series in a group; None if every value is 0.

    Every `every`-th group is labelled. `label_at` is where in its group: 0.5 is the middle, 0 the left edge, which
    suits histograms, whose labels are edges of bins.
    """
    most = max((value for _, _, values in series for value in values), default=0)
    if not most:
        return None
    levels = round_numbers(0.0, most)
    plot_height = HEIGHT - TOP - BOTTOM
    # A group takes an equal share of the width. Its bars fill 84 % of it, so 8 % stay free on each side.
    group_width = (WIDTH - LEFT - RIGHT) / len(groups)
    width = group_width * 0.84 / len(series)

    def bar(group: int, number: int, value: float) -> Bar:
        # The y axis of SVG points down: a bar starts `height` above the bottom edge of the plot.
        height = plot_height * value / levels[-1]
        left = LEFT + group_width * (group + 0.08) + width * number
        return Bar(round(left, 1), round(HEIGHT - BOTTOM - height, 1), round(width, 1), round(height, 1))

    labels = [
        Tick(round(LEFT + group_width * (position + label_at), 1), name)
        for position, name in enumerate(groups)
        if position % every == 0
    ]
    rows = [
        Tick(round(HEIGHT - BOTTOM - plot_height * value / levels[-1], 1), label) for value, label in labelled(levels)
    ]
    drawn = [
        BarSeries(label, colour, tuple(bar(group, number, value) for group, value in enumerate(values)))
        for number, (label, colour, values) in enumerate(series)
    ]
    return BarChart(
        id=id,
        title=title,
        description=" ".join(_describe_bars(label, groups, values) for label, _, values in series),
        unit=unit,
        x_ticks=tuple(labels),
        y_ticks=tuple(rows),
        series=tuple(drawn),
    )


def bins(values: Iterable[Sequence[float]], count: int = 12) -> list[float]:
    """The edges of about `count` bins over the middle 98 % of all values; see `count_in_bins` for the rest."""
    ordered = sorted(value for sequence in values for value in sequence)
    low, high = ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]
    return round_numbers(low, high, count)


def count_in_bins(values: Iterable[float], edges: Sequence[float]) -> list[int]:
    """How many values are in each bin; those beyond the edges count in the first and the last bin."""
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
    """Lines over training steps or another unit; None if no series has a point.

    `reference` is a horizontal line and its label, `bounds` are values that the vertical axis must include.
    """
    shown = [line for line in series if line.points]
    if not shown:
        return None
    # The vertical axis covers all points, all ends of intervals, the reference and the bounds.
    levels = [y for line in shown for _, y in line.points] + ([reference[0]] if reference else []) + list(bounds)
    levels += [end for line in shown for interval in line.intervals if interval for end in interval]
    y_values = round_numbers(min(levels), max(levels))
    last = max(x for line in shown for x, _ in line.points) or 1.0
    x_values = [value for value in round_numbers(0.0, last) if value <= last]

    def place(point: Point) -> Point:
        # x grows with the data from the left edge; y of SVG grows downwards, so the highest value is at TOP.
        across = LEFT + (WIDTH - LEFT - RIGHT) * point[0] / last
        down = TOP + (HEIGHT - TOP - BOTTOM) * (y_values[-1] - point[1]) / (y_values[-1] - y_values[0])
        return round(across, 1), round(down, 1)

    return LineChart(
        id=id,
        title=title,
        description=" ".join(_describe_line(line, unit) for line in shown),
        x_ticks=tuple(Tick(place((value, 0.0))[0], label) for value, label in labelled(x_values)),
        y_ticks=tuple(Tick(place((0.0, value))[1], label) for value, label in labelled(y_values)),
        lines=tuple(_draw(line, place) for line in shown),
        reference=Tick(place((0.0, reference[0]))[1], reference[1]) if reference else None,
        unit=f"{unit}s",
    )


def scale(values: Iterable[float]) -> Scale:
    """An axis over round numbers that covers every value and zero."""
    covered = [0.0, *values]
    return scale_over(round_numbers(min(covered), max(covered), 4))


def scale_over(ticks: Sequence[float]) -> Scale:
    """An axis from the first tick to the last."""
    low, high = ticks[0], ticks[-1]
    return Scale(low, high, tuple(Tick(_percent(value, low, high), label) for value, label in labelled(ticks)))


def divide(low: float, high: float) -> list[float]:
    """Ticks that divide a whole scale into equal parts of whole numbers: 1 to 10 into 3, 0 to 100 into 4."""
    for parts in (4, 3, 5, 2):
        distance = (high - low) / parts
        if distance.is_integer():
            return [low + distance * index for index in range(parts + 1)]
    return round_numbers(low, high)


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
    # The smallest round distance that is not below the rough one; 0.999 forgives the rounding of log10.
    distance = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    # 1e-9 keeps a range that ends on a multiple of the distance from getting one more tick.
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    return [index * distance for index in range(first, max(last, first + 1) + 1)]


def labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    """Values with their labels, which have just the decimals that tell them apart."""
    if max(map(abs, values)) < 0.01:
        return [(value, _scientific(value)) for value in values]
    distance = min((right - left for left, right in pairwise(values)), default=1.0)
    decimals = next(places for places in range(8) if abs(round(distance, places) - distance) < distance / 1000)
    return [(value, f"{value + 0.0:,.{decimals}f}".replace("-", "−")) for value in values]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Every k-th point and the last one, at most `most` + 1, so that a long run keeps the file small."""
    stride = math.ceil(len(points) / most)
    kept = list(points[::stride])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _draw(series: Series, place: Callable[[Point], Point]) -> DrawnLine:
    placed = [place(point) for point in thin(series.points)]
    path = "M" + " L".join(f"{x:g},{y:g}" for x, y in placed)
    dots = tuple(placed) if len(placed) <= 12 or series.intervals else ()
    intervals = tuple(
        (*place((x, interval[0])), place((x, interval[1]))[1])
        for (x, _), interval in zip(series.points, series.intervals, strict=False)
        if interval
    )
    return DrawnLine(series.label, series.colour, path, dots, series.dash, intervals)


def _describe_line(series: Series, unit: str) -> str:
    (first_x, first_y), (last_x, last_y) = series.points[0], series.points[-1]
    label = series.label[:1].upper() + series.label[1:]
    if len(series.points) == 1:
        return f"{label}: {first_y:.4g} at {unit} {first_x:g}."
    return f"{label}: from {first_y:.4g} at {unit} {first_x:g} to {last_y:.4g} at {unit} {last_x:g}."


def _describe_bars(label: str, groups: Sequence[str], values: Sequence[float]) -> str:
    most = max(range(len(values)), key=values.__getitem__)
    return f"{label.capitalize()}: {sum(values):g} in all, most at {groups[most]} ({values[most]:g})."


def _percent(value: float, low: float, high: float) -> float:
    share = (min(max(value, low), high) - low) / (high - low)
    return round(MARGIN_PERCENT + (100 - 2 * MARGIN_PERCENT) * share, 2)


def _scientific(value: float) -> str:
    if not value:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
