"""Whether `length-matched` rejects the worse answer of the nearest length, and says why where there is none."""

from random import Random

import pytest
import zephyrctl_length_matched
from zephyrctl_length_matched import times_as_long

from zephyrctl import plugins
from zephyrctl.contracts import Binarizer, NoPair, Picked
from zephyrctl.testing import check_binarizer, check_plugin, rated


def binarizer(**options: float) -> Binarizer:
    """The strategy, chosen by name as a recipe does."""
    return plugins.load().binarizer("length-matched", options)


@pytest.mark.parametrize("options", [{}, {"at_most": 1}, {"at_most": 100}], ids=str)
def test_it_keeps_the_contract(options: dict[str, float]) -> None:
    check_plugin(zephyrctl_length_matched)
    check_binarizer(lambda: binarizer(**options))


def test_it_is_installed_and_found() -> None:
    assert plugins.load().find("binarizer", "length-matched").origin.startswith("zephyrctl-length-matched ")


def test_the_nearest_length_is_rejected() -> None:
    """Of the lower-rated answers, and however the best one is placed."""
    picked = binarizer().pick(rated(("no", 1), ("0123456789", 5), ("01234567", 2), ("x" * 40, 4)), Random(0))
    assert isinstance(picked, Picked)
    assert (picked.chosen.completion.text, picked.rejected.completion.text) == ("0123456789", "01234567")
    assert (picked.chosen.score, picked.rejected.score) == (5, 2)


@pytest.mark.parametrize(
    ("answers", "cause"),
    [
        ([("0123456789", 5.0), ("no", 1.0)], "no lower-rated answer of similar length"),
        ([("yes", 3.0), ("no", 3.0)], "no answer rated lower than the best"),
    ],
)
def test_why_there_is_no_pair(answers: list[tuple[str, float]], cause: str) -> None:
    """Counted under these words."""
    assert binarizer().pick(rated(*answers), Random(0)) == NoPair(cause)


def test_ties_are_settled_as_the_recipe_says() -> None:
    """By the seed, for the first, or not at all."""
    texts = [("one", 5.0), ("two", 5.0), ("six", 1.0)]
    drawn = [binarizer().pick(rated(*texts), Random(seed)) for seed in range(20)]
    assert {picked.chosen.place for picked in drawn if isinstance(picked, Picked)} == {0, 1}
    firsts = [binarizer().pick(rated(*texts, ties="first"), Random(seed)) for seed in range(20)]
    assert {picked.chosen.place for picked in firsts if isinstance(picked, Picked)} == {0}
    assert binarizer().pick(rated(*texts, ties="drop"), Random(0)) == NoPair("tie for the best answer")


def test_an_option_widens_the_match() -> None:
    """`at_most` is a ratio of lengths."""
    assert isinstance(binarizer(at_most=5).pick(rated(("0123456789", 5), ("no", 1)), Random(0)), Picked)
    assert times_as_long("abc", "") == times_as_long("", "abc") == 3
