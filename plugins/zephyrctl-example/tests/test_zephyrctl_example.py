"""Whether the example plugin is found, and does what it says."""

import asyncio
from random import Random

import pytest
from zephyrctl_example import times_as_long

from zephyrctl import plugins
from zephyrctl.contracts import Binarizer, NoPair
from zephyrctl.records import Completion, Message, PreferencePair, RatedPrompt, Rating


def rated(*answers: tuple[str, float]) -> RatedPrompt:
    """A prompt with answers of these ratings."""
    completions = [
        Completion(model=f"model {place}", text=text, ratings=[Rating(aspect="helpfulness", value=value)])
        for place, (text, value) in enumerate(answers)
    ]
    return RatedPrompt(id="a", messages=[Message(role="user", content="Why?")], completions=completions, source="test")


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
    assert isinstance(picked, PreferencePair)
    assert (picked.chosen, picked.rejected) == ("0123456789", "01234567")
    assert (picked.score_chosen, picked.score_rejected) == (5, 2)


@pytest.mark.parametrize(
    ("answers", "cause"),
    [
        ([("0123456789", 5.0), ("no", 1.0)], "no lower-rated answer of similar length"),
        ([("yes", 3.0), ("no", 3.0)], "no answer rated lower than the best"),
        ([], "no answer rated lower than the best"),
    ],
)
def test_why_there_is_no_pair(answers: list[tuple[str, float]], cause: str) -> None:
    """Counted under these words."""
    assert binarizer().pick(rated(*answers), Random(0)) == NoPair(cause)


def test_an_option_widens_the_match() -> None:
    """`at_most` is a ratio of lengths."""
    assert isinstance(binarizer(at_most=5).pick(rated(("0123456789", 5), ("no", 1)), Random(0)), PreferencePair)
    assert times_as_long("abc", "") == times_as_long("", "abc") == 3


def test_the_base_has_the_size_that_its_shape_says() -> None:
    """Attention, three feed-forward matrices and two norms a layer, tied embeddings, a last norm."""
    shape = plugins.load().model_base("smollm2-135m", {}).sizes()
    attention = 2 * shape.width * (shape.width + shape.key_value_width)
    layer = attention + 3 * shape.width * shape.feed_forward + 2 * shape.width
    assert shape.parameters == shape.vocabulary * shape.width + shape.layers * layer + shape.width
