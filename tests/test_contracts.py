"""Whether what a judge writes becomes its number, and never one that it did not mean; and what contracts bring."""

import asyncio
from collections.abc import Sequence

import pytest

from zephyrctl.contracts import (
    GREEDY,
    ModelBase,
    PluginOptions,
    Reply,
    Sampling,
    Sizes,
    Teacher,
    parse_preference,
    parse_ratings,
    parse_verdict,
)
from zephyrctl.records import Message


@pytest.mark.parametrize(
    ("said", "value", "rationale"),
    [
        ("4. Does it.", 4, "Does it."),
        ("4.5", 4.5, ""),
        ("1", 1, ""),
        ("5.0.", 5, ""),
        ("**4**. Does it.", 4, "Does it."),
        ("[4]: Does it.", 4, "Does it."),
        ("Rating: 4 - does it", 4, "does it"),
        ("4, since it does it", 4, "since it does it"),
        ("4 (does it)", 4, "(does it)"),
        ("3. 5 of 6 claims hold.", 3, "5 of 6 claims hold."),
        ("4/5", 4, ""),
        ("4.5 / 5. Does it.", 4.5, "Does it."),
        ("4 out of 5; does it", 4, "does it"),
    ],
)
def test_a_rating_is_read(said: str, value: float, rationale: str) -> None:
    """Half numbers stay halves, and `4/5` is 4: 5 is the end of the scale that the prompt states."""
    (rating,) = parse_ratings(f"Answer 1: {said}", 1, "honesty")
    assert (rating.value, rating.rationale, rating.aspect) == (value, rationale, "honesty")


@pytest.mark.parametrize(
    "said",
    [
        *("", "N/A", "N/A. 3 of the claims cannot be checked.", "RATING. One sentence that says why.", "five", "?"),
        *("0", "0.5", "6", "10", "10. Perfect.", "7.5", "45", "-4", "- 4", "\u22124", "1.5.2", "4.."),
        *("4/10", "8/10", "4.5/50", "4/5.5", "4 out of 10", "4 out of 50", "80%", "4%"),
        *(
            "3-4",
            "3 - 4",
            "3\u20134",
            "3 or 4",
            "4,5",
            "4, 5",
            "4 of the 5 claims hold.",
            "4th",
            "4x",
            "4 stars",
            "4e0",
        ),
    ],
)
def test_what_is_not_plainly_one_rating_is_missing(said: str) -> None:
    """Neither a digit of a longer number, nor a range, nor a count, nor a rank; the words are kept as rationale."""
    (rating,) = parse_ratings(f"Answer 1: {said}", 1, "honesty")
    assert rating.value is None
    assert rating.rationale == said


@pytest.mark.parametrize(
    "line", ["Answer 1: 4", "- answer 1: 4", "**Answer 1:** 4", "**Answer 1**: 4", "Answer #1 = 4", "  Answer 1 - 4"]
)
def test_forms_of_a_line(line: str) -> None:
    """Bullets, bold and dashes change nothing."""
    assert parse_ratings(line, 1, "honesty")[0].value == 4


@pytest.mark.parametrize(
    "text",
    ["", "4", "1: 4", "Answer one: 4", "Answer 1\n4", "I rate answer 1: 4", "Answer: 4", "Answers 1: 4", "\x00\ud800"],
)
def test_a_reply_that_rates_nothing(text: str) -> None:
    """Every answer's rating is missing, and every answer has one."""
    assert [rating.value for rating in parse_ratings(text, 3, "honesty")] == [None] * 3


def test_ratings_are_those_of_their_answers() -> None:
    """In any order, with some missing, too many, and text around them."""
    text = "Here you are.\n\nAnswer 3: 2. C\nAnswer 1: 5. A\nAnswer 7: 1. nobody\nAnswer 0: 1. nobody\nThat is all: 4."
    assert [rating.value for rating in parse_ratings(text, 4, "honesty")] == [5, None, 2, None]
    assert parse_ratings(text, 0, "honesty") == []


def test_the_last_line_for_an_answer_counts() -> None:
    """A judge that thinks aloud corrects itself, and may take its rating back."""
    text = "Answer 1: 5. At first.\nAnswer 2: 5.\nAnswer 1: 2. On reflection.\nAnswer 2: N/A"
    assert [rating.value for rating in parse_ratings(text, 2, "honesty")] == [2, None]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Good.\n[[8]]", 8),
        ("**[[7.5]]**", 7.5),
        ("[[ 10 ]]", 10),
        ("[[1]].", 1),
        ("[[8/10]]", 8),
        ("Between [[4]] and [[6]]; I settle on [[5]]", 5),
        ("It writes x[[1]] = 2, as asked. Rating: [[9]]", 9),
        ("Good.\n[8]", 8),
        ("Good.\nRating: [8]", 8),
        ("Good.\n**Score:** [7.5].", 7.5),
        *((text, None) for text in ("", "8", "8/10", "Rating: 8", "[[]]", "[[N/A]]", "[[SCORE]]", "[[8", "[[eight]]")),
        *(
            (text, None)
            for text in ("[[0]]", "[[11]]", "[[-3]]", "[[0.5]]", "[[4-5]]", "[[80%]]", "[[8/5]]", "[[1,5]]")
        ),
        ("As [1] says, this is wrong.", None),
        ("It is wrong, see [1]", None),
        ("First [[8]], but no: [[N/A]]", None),
    ],
)
def test_a_score_is_read(text: str, score: float | None) -> None:
    """From the last double brackets, or from single ones that stand alone; a footnote is no score."""
    assert parse_verdict(text).score == score


def test_a_verdict_keeps_its_reason() -> None:
    """The whole reply, so that a missing score can be looked into."""
    assert parse_verdict("\n Nonsense. \n").reason == "Nonsense."


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("A says more.\n[[A]]", 1.0),
        ("[[ b ]]", 0.0),
        ("[[C]]", 0.5),
        ("Not [[A]] but [[B]]", 0.0),
        *((text, None) for text in ("", "A", "[A]", "[[D]]", "[[A", "[[A or B]]", "[[A]] or rather [[neither]]")),
    ],
)
def test_a_preference_is_read(text: str, outcome: float | None) -> None:
    """From the last double brackets only."""
    assert parse_preference(text) == outcome


class Parrot(Teacher):
    """A teacher with the one method that must be written."""

    name = "parrot"

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """What was said."""
        return Reply(messages[-1].content, "parrot-1")


def test_one_method_makes_a_teacher() -> None:
    """Everything else is asked by prompt; a reply that only repeats the prompt gives no number."""
    parrot, asked = Parrot(PluginOptions()), [Message(role="user", content="Why?")]
    assert parrot.label == "parrot"
    assert [rating.value for rating in asyncio.run(parrot.rate(asked, ["a", "b"], "honesty"))] == [None, None]
    verdict = asyncio.run(parrot.judge(asked, "a"))
    assert (verdict.score, verdict.model) == (None, "parrot-1")
    assert asyncio.run(parrot.compare(asked, "a", "b")) is None
    assert "Why?" in asyncio.run(parrot.refine("Why?", "Because.", 1))
    assert "Why?" in asyncio.run(parrot.speak_as_user(asked, 1))
    asyncio.run(parrot.close())


def test_a_base_brings_a_template_that_marks_what_is_learned() -> None:
    """Without an override it is Zephyr's, with generation marks (trl's assistant-only loss wants them)."""

    class Base(ModelBase):
        name = "some"

        def location(self) -> str:
            return "some/base"

        def sizes(self) -> Sizes:
            return Sizes(parameters=1, width=1, layers=1, feed_forward=1, key_value_width=1, vocabulary=1)

    base = Base(PluginOptions())
    assert "generation" in base.chat_template()
    assert (base.revision, base.license) == (None, "unknown")
