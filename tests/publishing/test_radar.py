"""The radar: every place lies on its spoke, a missing category leaves a gap, and all of it stays inside its box."""

import math

import pytest

from zephyrctl.publishing.radar import CENTRE, HEIGHT, RADIUS, WIDTH, radar

NAMES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")


def test_a_score_lies_on_its_spoke_as_far_out_as_it_is_high() -> None:
    scores = {name: float(place + 1) for place, name in enumerate(NAMES)}
    drawn = radar(NAMES, [scores])
    assert drawn and drawn.polygons[0].path.count("L") == len(NAMES)
    for spoke, (x, y), score in zip(drawn.spokes, drawn.polygons[0].dots, scores.values(), strict=True):
        assert math.dist(CENTRE, (x, y)) == pytest.approx(RADIUS * score / 10, abs=0.2)
        across = (spoke.end[0] - CENTRE[0]) * (y - CENTRE[1]) - (spoke.end[1] - CENTRE[1]) * (x - CENTRE[0])
        assert abs(across) / RADIUS < 0.3
    assert drawn.spokes[0].align == "middle" and drawn.spokes[2].align == "start" and drawn.spokes[6].align == "end"


def test_a_missing_category_leaves_a_gap_on_both_sides() -> None:
    drawn = radar(NAMES, [{name: None if name == "coding" else 5.0 for name in NAMES}, dict.fromkeys(NAMES)])
    assert drawn
    gapped, empty = drawn.polygons
    assert (gapped.path.count("L"), len(gapped.dots)) == (6, 7)
    assert (empty.path, empty.dots) == ("", ())


def test_nothing_leaves_the_box() -> None:
    drawn = radar(NAMES, [dict.fromkeys(NAMES, 99.0), dict.fromkeys(NAMES, -5.0)])
    assert drawn
    assert {round(math.dist(CENTRE, dot)) for dot in drawn.polygons[0].dots} == {RADIUS}
    assert set(drawn.polygons[1].dots) == {CENTRE}
    for spoke in drawn.spokes:
        assert 0 < spoke.at[0] < WIDTH and 0 < spoke.at[1] < HEIGHT


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_categories_make_no_polygon(count: int) -> None:
    assert radar(NAMES[:count], [{}]) is None
