"""Whether what a rater or judge writes becomes its number, and never one that it did not mean."""

import json

import pytest

from zephyrctl.records import Rating
from zephyrctl.verdicts import (
    is_not_applicable,
    parse_list,
    parse_preference,
    parse_verdict,
    ratings_schema,
    read_ratings,
)

MANY_DIGITS = "9" * 5000


def read(text: str, count: int) -> list[Rating]:
    """The marks alone."""
    return read_ratings(text, count, "honesty")[0]


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
    (rating,) = read(f"Answer 1: {said}", 1)
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
    (rating,) = read(f"Answer 1: {said}", 1)
    assert rating.value is None
    assert rating.rationale == said


@pytest.mark.parametrize(
    "line", ["Answer 1: 4", "- answer 1: 4", "**Answer 1:** 4", "**Answer 1**: 4", "Answer #1 = 4", "  Answer 1 - 4"]
)
def test_forms_of_a_line(line: str) -> None:
    """Bullets, bold and dashes change nothing."""
    assert read(line, 1)[0].value == 4


@pytest.mark.parametrize(
    "text",
    ["", "4", "1: 4", "Answer one: 4", "Answer 1\n4", "I rate answer 1: 4", "Answer: 4", "Answers 1: 4", "\x00\ud800"],
)
def test_a_reply_that_rates_nothing(text: str) -> None:
    """Every answer's rating is missing, and every answer has one."""
    assert [rating.value for rating in read(text, 3)] == [None] * 3


def test_ratings_are_those_of_their_answers() -> None:
    """In any order, with some missing and text around them."""
    text = "Here you are.\n\nAnswer 3: 2. C\nAnswer 1: 5. A\nThat is all: 4."
    marks, is_readable = read_ratings(text, 4, "honesty")
    assert [mark.value for mark in marks] == [5, None, 2, None]
    assert not is_readable, "two marks are not there, and nobody said why"
    assert read_ratings(text, 0, "honesty") == ([], False)
    assert read_ratings("", 0, "honesty") == ([], True)


@pytest.mark.parametrize(
    "text",
    [
        "Answer 0: 5\nAnswer 1: 4\nAnswer 2: 3",
        "Answer 1: 5\nAnswer 2: 4\nAnswer 3: 3",
        json.dumps({"answer_0": 5, "answer_1": 4, "answer_2": 3}),
        json.dumps({f"answer_{place}": {"rating": 4, "rationale": "so"} for place in (1, 2, 3)}),
    ],
)
def test_marks_for_answers_that_were_not_shown_make_all_of_them_missing(text: str) -> None:
    """Who counts from 0, or sees more answers than there are, does not mean ours."""
    marks, is_readable = read_ratings(text, 2, "honesty")
    assert [mark.value for mark in marks] == [None, None]
    assert not is_readable


@pytest.mark.parametrize(
    ("said", "is_readable"),
    [
        *(
            (said, True)
            for said in ("N/A", "n/a.", "**N/A**", "[N/A] - nothing to rate", "Rating: N/A", "Not applicable")
        ),
        *(
            (said, True)
            for said in ("N/A (no facts)", "N/A, as it states nothing", "N/A. 3 of them cannot be checked.")
        ),
        *(
            (said, False)
            for said in ("", "none", "7.5", "0", "6", "10", "4-5", "five", "4/10", "NA", "N/A/5", "N/Answer")
        ),
    ],
)
def test_only_a_plain_n_a_is_an_answer_that_need_not_be_asked_again(said: str, is_readable: bool) -> None:
    (mark,), found = read_ratings(f"Answer 1: {said}", 1, "honesty")
    assert mark.value is None
    assert found == is_readable


@pytest.mark.parametrize(
    ("stated", "value", "is_readable"),
    [
        (4, 4.0, True),
        (4.5, 4.5, True),
        ("4.5", 4.5, True),
        ("4/5", 4.0, True),
        (None, None, True),
        ("N/A", None, True),
        *((wrong, None, False) for wrong in (7.5, "7.5", 0, 6, -4, True, "true", "four", "", [4], {"value": 4})),
        *((wrong, None, False) for wrong in (1e300, float("nan"), float("inf"), 10**400)),
    ],
)
def test_marks_of_json_are_as_strict(stated: object, value: float | None, is_readable: bool) -> None:
    """A number from 1 to 5, or the same in words; true is no 1, and what is out of range is not cut to fit."""
    text = json.dumps({"answer_1": {"rationale": " so ", "rating": stated}, "answer_2": {"rationale": "", "rating": 1}})
    marks, found = read_ratings(text, 2, "honesty")
    assert [mark.value for mark in marks] == [value, 1.0]
    assert marks[0].rationale == "so"
    assert found == is_readable


@pytest.mark.parametrize(
    "text",
    [
        '{"answer_1": {"rating": 4, "rationale": "so"}, "answer_2": {"rating": 2, "rationale": "so"}}',
        '  {"Answer 1": {"Rating": 4}, "answer-2": {"RATING": "2"}}  ',
        '{"answer_1": 4, "answer_2": "2"}',
        'Here you are:\n```json\n{\n  "answer_1": {"rating": 4},\n  "answer_2": {"rating": 2}\n}\n```\nThat is all.',
        '```{"answer_1": {"rating": 4}, "answer_2": {"rating": 2}}```',
        '{"answer_1": {"rating": 1}, "answer_2": {"rating": 1}}\nOn reflection:\n{"answer_1": 4, "answer_2": 2}',
        '{"answer_1": 4, "answer_2": 2}\n{"note": "done"}',
    ],
)
def test_forms_of_json(text: str) -> None:
    """Alone, in a fence or among words; the last object that names answers counts."""
    marks, is_readable = read_ratings(text, 2, "honesty")
    assert [mark.value for mark in marks] == [4, 2]
    assert is_readable


@pytest.mark.parametrize(
    "text",
    [
        *('{"answer_1": {"rating": 4', "{" * 100_000, '{"a":' * 100_000, "\n{" * 100_000, "null", '"4"', "[4]", "{}"),
        *('{"ratings": [4]}', f"Answer {MANY_DIGITS}: 4", f"Answer 1: {MANY_DIGITS}", f'{{"answer_1": {MANY_DIGITS}}}'),
    ],
)
def test_broken_and_hostile_replies_rate_nothing(text: str) -> None:
    marks, is_readable = read_ratings(text, 1, "honesty")
    assert [mark.value for mark in marks] == [None]
    assert not is_readable


def test_the_schema_asks_for_what_is_read() -> None:
    schema = json.loads(ratings_schema(3))
    assert schema["required"] == ["answer_1", "answer_2", "answer_3"]
    held_to_it = {name: {"rationale": "so", "rating": place} for place, name in enumerate(schema["required"], 2)}
    assert [mark.value for mark in read(json.dumps(held_to_it), 3)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("text", "is_so"),
    [("[[N/A]]", True), ("Well. [[ n/a ]]", True), ("[[8]]", False), ("N/A", False), ("[[NAN]]", False)],
)
def test_a_judge_may_say_that_it_gives_no_score(text: str, is_so: bool) -> None:
    assert is_not_applicable(text) == is_so


def test_a_list_is_read_without_its_marks() -> None:
    assert parse_list('1. "Tides"\n- Lighthouses\n\n(3) *Knots*\n12) Sails') == [
        "Tides",
        "Lighthouses",
        "Knots",
        "Sails",
    ]


def test_the_last_line_for_an_answer_counts() -> None:
    """A judge that thinks aloud corrects itself, and may take its rating back."""
    text = "Answer 1: 5. At first.\nAnswer 2: 5.\nAnswer 1: 2. On reflection.\nAnswer 2: N/A"
    assert [rating.value for rating in read(text, 2)] == [2, None]


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
