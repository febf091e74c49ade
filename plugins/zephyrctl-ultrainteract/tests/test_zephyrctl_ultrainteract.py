"""Whether `ultrainteract` pairs all that is a margin apart, the widest first, and no more than it may."""

from random import Random

import pytest
import zephyrctl_ultrainteract

from zephyrctl import plugins
from zephyrctl.contracts import Answers, NoPair
from zephyrctl.testing import check_binarizer, check_plugin, rated

FOUR = rated(("a", 5), ("b", 4), ("c", 2), ("d", 1))


def places(answers: Answers, seed: int = 0, **options: float) -> list[tuple[int, int]]:
    """The places that are paired, in their order."""
    picked = plugins.load().binarizer("ultrainteract", options).pick(answers, Random(seed))
    assert isinstance(picked, list), picked
    return [(pair.chosen.place, pair.rejected.place) for pair in picked]


@pytest.mark.parametrize("options", [{}, {"at_least": 0.5, "at_most": 1}, {"at_least": 3}], ids=str)
def test_it_keeps_the_contract(options: dict[str, float]) -> None:
    check_plugin(zephyrctl_ultrainteract)
    check_binarizer(lambda: plugins.load().binarizer("ultrainteract", options))


def test_it_is_installed_and_found() -> None:
    assert plugins.load().find("binarizer", "ultrainteract").origin.startswith("zephyrctl-ultrainteract ")


def test_every_pair_is_a_margin_apart_and_the_widest_come_first() -> None:
    assert places(FOUR)[0] == (0, 3)
    assert set(places(FOUR)) == {(0, 3), (0, 2), (1, 3), (1, 2), (0, 1), (2, 3)}
    assert set(places(FOUR, at_least=2)) == {(0, 3), (0, 2), (1, 3), (1, 2)}
    assert places(FOUR, at_least=4) == [(0, 3)]
    assert places(rated(("a", 4.1), ("b", 3.1)), at_least=1) == [(0, 1)], "in spite of floating point"


def test_a_prompt_gives_at_most_so_many_and_chance_settles_equal_margins() -> None:
    drawn = {tuple(places(FOUR, seed, at_most=2)) for seed in range(20)}
    assert drawn == {((0, 3), (0, 2)), ((0, 3), (1, 3))}


@pytest.mark.parametrize("scores", [(3, 3), (3, 2.5)])
def test_why_there_is_no_pair(scores: tuple[float, float]) -> None:
    picked = plugins.load().binarizer("ultrainteract", {}).pick(rated(("a", scores[0]), ("b", scores[1])), Random(0))
    assert picked == NoPair("no two answers 1 points apart")
