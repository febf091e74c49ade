"""Compute the coordinates of a radar chart: a spoke for each category, a ring every two points, a polygon per model."""

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
"""The distance of a category's name from the outermost ring."""

TextAnchor = Literal["start", "middle", "end"]
"""SVG's `text-anchor`: which part of a text is at its position."""


@dataclass(frozen=True)
class Spoke:
    """A category: the end of its line, and the position of its name."""

    label: str
    end: Point
    at: Point
    align: TextAnchor


@dataclass(frozen=True)
class Ring:
    """A level: the corners of its polygon, and the position of its number."""

    label: str
    points: str
    at: Point


@dataclass(frozen=True)
class Polygon:
    """One model: its outline, with gaps for missing categories, and its dots."""

    path: str
    dots: tuple[Point, ...]


@dataclass(frozen=True)
class Radar:
    """Everything that a radar chart shows."""

    spokes: tuple[Spoke, ...]
    rings: tuple[Ring, ...]
    polygons: tuple[Polygon, ...]
    width: int = WIDTH
    height: int = HEIGHT
    centre: Point = CENTRE


def radar(categories: Sequence[str], models: Sequence[Mapping[str, float | None]]) -> Radar | None:
    """A radar chart of scores from 0 to 10; None for fewer than three categories, which make no polygon."""
    if len(categories) < 3:
        return None
    # A spoke's direction is a share of a full turn, clockwise from the top: 0, 1/8, 2/8, ... for eight categories.
    turns = [position / len(categories) for position in range(len(categories))]
    return Radar(
        spokes=tuple(_spoke(label, turn) for label, turn in zip(categories, turns, strict=True)),
        rings=tuple(_ring(level, turns) for level in RINGS),
        polygons=tuple(_polygon([scores.get(name) for name in categories], turns) for scores in models),
    )


def _at(turn: float, score: float, beyond: float = 0.0) -> Point:
    """The position of a score on the spoke of that turn, `beyond` units further out."""
    distance = RADIUS * min(max(score, 0.0), TOP_SCORE) / TOP_SCORE + beyond
    angle = 2 * math.pi * turn
    # Angle 0 points up and y grows downwards, hence x + sin and y - cos.
    return round(CENTRE[0] + distance * math.sin(angle), 1), round(CENTRE[1] - distance * math.cos(angle), 1)


def _spoke(label: str, turn: float) -> Spoke:
    """A spoke; names on the right half begin at their position, names on the left half end there."""
    across = math.sin(2 * math.pi * turn)
    align: TextAnchor = "start" if across > 0 else "end"
    if abs(across) < 0.1:
        align = "middle"
    return Spoke(label, _at(turn, TOP_SCORE), _at(turn, TOP_SCORE, GAP), align)


def _ring(level: int, turns: Sequence[float]) -> Ring:
    corners = " ".join(f"{x:g},{y:g}" for x, y in (_at(turn, level) for turn in turns))
    return Ring(str(level), corners, _at(0, level))


def _polygon(scores: Sequence[float | None], turns: Sequence[float]) -> Polygon:
    """Lines between neighbours that both have a score; a missing score leaves a gap."""
    corners = [None if score is None else _at(turn, score) for score, turn in zip(scores, turns, strict=True)]
    strokes, was_drawn = [], False
    for corner in [*corners, corners[0]]:  # back to the first corner closes the outline
        if corner:
            strokes.append(f"{'L' if was_drawn else 'M'}{corner[0]:g},{corner[1]:g}")
        was_drawn = corner is not None
    return Polygon(" ".join(strokes), tuple(corner for corner in corners if corner))
