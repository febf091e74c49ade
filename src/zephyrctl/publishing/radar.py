"""Where the marks of a radar lie: one spoke a category, one ring every two points, one polygon a model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from zephyrctl.publishing.charts import Point

WIDTH, HEIGHT, RADIUS = 480, 392, 150
CENTRE = (WIDTH / 2, HEIGHT / 2 + 2)
TOP_SCORE = 10
RINGS = (2, 4, 6, 8, 10)
GAP = 14
"""How far a category's name stands from the outermost ring."""

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Spoke:
    """A category: the end of its line, and where its name stands."""

    label: str
    end: Point
    at: Point
    align: Anchor


@dataclass(frozen=True)
class Ring:
    """A level: the corners of its octagon, and where its number stands."""

    label: str
    points: str
    at: Point


@dataclass(frozen=True)
class Polygon:
    """One model: its outline, closed only where no category is missing, and its dots."""

    path: str
    dots: tuple[Point, ...]


@dataclass(frozen=True)
class Radar:
    """Everything that a radar shows."""

    spokes: tuple[Spoke, ...]
    rings: tuple[Ring, ...]
    polygons: tuple[Polygon, ...]
    width: int = WIDTH
    height: int = HEIGHT
    centre: Point = CENTRE


def radar(categories: Sequence[str], models: Sequence[Mapping[str, float | None]]) -> Radar | None:
    """A radar from 0 to 10; None for fewer than three categories, which make no polygon."""
    if len(categories) < 3:
        return None
    turns = [place / len(categories) for place in range(len(categories))]
    return Radar(
        spokes=tuple(_spoke(label, turn) for label, turn in zip(categories, turns, strict=True)),
        rings=tuple(_ring(level, turns) for level in RINGS),
        polygons=tuple(_polygon([one.get(name) for name in categories], turns) for one in models),
    )


def _at(turn: float, score: float, beyond: float = 0.0) -> Point:
    """The place of a score on the spoke that stands so much of a turn clockwise from the top."""
    reach = RADIUS * min(max(score, 0.0), TOP_SCORE) / TOP_SCORE + beyond
    angle = 2 * math.pi * turn
    return round(CENTRE[0] + reach * math.sin(angle), 1), round(CENTRE[1] - reach * math.cos(angle), 1)


def _spoke(label: str, turn: float) -> Spoke:
    across = math.sin(2 * math.pi * turn)
    align: Anchor = "middle" if abs(across) < 0.1 else "start" if across > 0 else "end"
    return Spoke(label, _at(turn, TOP_SCORE), _at(turn, TOP_SCORE, GAP), align)


def _ring(level: int, turns: Sequence[float]) -> Ring:
    corners = " ".join(f"{x:g},{y:g}" for x, y in (_at(turn, level) for turn in turns))
    return Ring(str(level), corners, _at(0, level))


def _polygon(scores: Sequence[float | None], turns: Sequence[float]) -> Polygon:
    """A line between neighbours that both have a score; what is missing leaves a gap."""
    places = [None if score is None else _at(turn, score) for score, turn in zip(scores, turns, strict=True)]
    strokes, was_drawn = [], False
    for place in [*places, places[0]]:
        if place:
            strokes.append(f"{'L' if was_drawn else 'M'}{place[0]:g},{place[1]:g}")
        was_drawn = place is not None
    return Polygon(" ".join(strokes), tuple(place for place in places if place))
