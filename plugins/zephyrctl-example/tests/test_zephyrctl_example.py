"""Whether the example plugin is found, keeps its contracts, and does what it says."""

import asyncio
from random import Random

import pytest
import zephyrctl_example

from zephyrctl import plugins
from zephyrctl.contracts import Binarizer, NoPair, Picked
from zephyrctl.records import Message
from zephyrctl.testing import check_binarizer, check_model_base, check_plugin, check_teacher, rated


def binarizer(**options: float) -> Binarizer:
    """The strategy, chosen by name as a recipe does."""
    return plugins.load().binarizer("brevity", options)


def test_it_is_installed_and_found() -> None:
    """Its three offers come from its own distribution."""
    mine = {offer.name for offer in plugins.load().offers if offer.origin.startswith("zephyrctl-example ")}
    assert mine == {"echo", "brevity", "smollm2-135m"}


def test_it_keeps_the_contracts() -> None:
    """Whatever a stage may ask of it."""
    check_plugin(zephyrctl_example)
    check_teacher(lambda: plugins.load().teacher("echo", {}))
    check_binarizer(binarizer)
    check_model_base(lambda: plugins.load().model_base("smollm2-135m", {}))


def test_the_echo() -> None:
    """The last turn, after the opening."""
    teacher = plugins.load().teacher("echo", {"opening": "You said: "})
    assert asyncio.run(teacher.reply([Message(role="user", content="hello")])).text == "You said: hello"


def test_a_longer_answer_is_rejected() -> None:
    """Of the lower-rated ones, and only where it is longer by so much."""
    answers = rated(("x" * 40, 2), ("0123456789", 5), ("short", 1), ("0123456789.", 1))
    picked = [binarizer().pick(answers, Random(seed)) for seed in range(10)]
    assert {(pair.chosen.place, pair.rejected.place) for pair in picked if isinstance(pair, Picked)} == {(1, 0)}
    wide = [binarizer(at_least=1.05).pick(answers, Random(seed)) for seed in range(20)]
    assert {pair.rejected.place for pair in wide if isinstance(pair, Picked)} == {0, 3}


@pytest.mark.parametrize(
    ("answers", "cause"),
    [
        ([("0123456789", 5.0), ("no", 1.0)], "no lower-rated answer is longer"),
        ([("yes", 3.0), ("no", 3.0)], "no answer rated lower than the best"),
    ],
)
def test_why_there_is_no_pair(answers: list[tuple[str, float]], cause: str) -> None:
    """Counted under these words."""
    assert binarizer().pick(rated(*answers), Random(0)) == NoPair(cause)


def test_ties_are_settled_as_the_recipe_says() -> None:
    """By the seed, for the first, or not at all."""
    texts = [("one", 5.0), ("two", 5.0), ("seven", 1.0)]
    drawn = [binarizer().pick(rated(*texts), Random(seed)) for seed in range(20)]
    assert {picked.chosen.place for picked in drawn if isinstance(picked, Picked)} == {0, 1}
    assert binarizer().pick(rated(*texts, ties="drop"), Random(0)) == NoPair("tie for the best answer")


def test_the_base_has_the_size_that_its_shape_says() -> None:
    """Attention, three feed-forward matrices and two norms a layer, tied embeddings, a last norm."""
    shape = plugins.load().model_base("smollm2-135m", {}).sizes()
    attention = 2 * shape.width * (shape.width + shape.key_value_width)
    layer = attention + 3 * shape.width * shape.feed_forward + 2 * shape.width
    assert shape.parameters == shape.vocabulary * shape.width + shape.layers * layer + shape.width
