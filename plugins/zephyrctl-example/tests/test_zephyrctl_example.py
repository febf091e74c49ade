"""Whether the example plugin is found, and does what it says."""

import asyncio
from collections import Counter
from random import Random
from typing import Literal

import pytest
from zephyrctl_example import times_as_long

from zephyrctl import plugins
from zephyrctl.contracts import Answers, Binarizer, NoPair, Picked
from zephyrctl.data.scores import answers_of
from zephyrctl.recipe import Binarize
from zephyrctl.records import Completion, Message, RatedPrompt, Rating


def rated(*answers: tuple[str, float], ties: Literal["random", "first", "drop"] = "random") -> Answers:
    """A prompt with answers of these ratings, scored as a recipe does by default."""
    completions = [
        Completion(model=f"model {place}", text=text, ratings=[Rating(aspect="helpfulness", value=value)])
        for place, (text, value) in enumerate(answers)
    ]
    asked = [Message(role="user", content="Why?")]
    prompt = RatedPrompt(id="a", messages=asked, completions=completions, source="test")
    scored = answers_of(prompt, Binarize(ties=ties), Counter())
    assert isinstance(scored, Answers)
    return scored


def binarizer(**options: float) -> Binarizer:
    """The strategy, chosen by name as a recipe does."""
    return plugins.load().binarizer("length-matched", options)


def test_it_is_installed_and_found() -> None:
    """Its three offers come from its own distribution."""
    mine = {offer.name for offer in plugins.load().offers if offer.origin.startswith("zephyrctl-example ")}
    assert mine == {"echo", "length-matched", "smollm2-135m"}


def test_the_echo() -> None:
    """The last turn, after the opening."""
    teacher = plugins.load().teacher("echo", {"opening": "You said: "})
    assert asyncio.run(teacher.reply([Message(role="user", content="hello")])).text == "You said: hello"


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


def test_the_base_has_the_size_that_its_shape_says() -> None:
    """Attention, three feed-forward matrices and two norms a layer, tied embeddings, a last norm."""
    shape = plugins.load().model_base("smollm2-135m", {}).sizes()
    attention = 2 * shape.width * (shape.width + shape.key_value_width)
    layer = attention + 3 * shape.width * shape.feed_forward + 2 * shape.width
    assert shape.parameters == shape.vocabulary * shape.width + shape.layers * layer + shape.width
