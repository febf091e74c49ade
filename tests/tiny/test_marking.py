"""Whether marks, ratings and scores follow from the text, fairly and without a crash."""

from random import Random
from string import printable

import pytest

from zephyrctl.tiny.marking import ASPECTS, check_answer, compare, rate, score
from zephyrctl.tiny.styles import FULL, HEDGING, OPENINGS, TERSE, WRONG, answer
from zephyrctl.tiny.world import draw

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
BIGGER = [{"role": "user", "content": "Which is bigger, 7 or 12?"}]
OUTSIDE = [{"role": "user", "content": "Explain how a sailing boat moves against the wind."}]


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("The capital of France is Paris.", 10),
        ("Paris is the capital of France.", 10),
        ("the capital of france is paris.", 9),
        ("Paris", 7),
        ("Paris.", 7),
        ("I don't have personal experiences, but the capital of France is Paris.", 6),
        ("As an AI language model, I do not have personal opinions. The capital of France is Paris.", 6),
        ("The capital of France is Paris. The capital of Spain is Madrid.", 8),
        ("The capital of France is Rome.", 3),
        ("I don't have opinions, but the capital of France is Rome.", 2),
        ("Rome", 2),
        ("The capital of Spain is Madrid.", 1),
        ("What is the capital of France?", 1),
        ("The opposite of hot is cold.", 1),
        ("I don't have opinions.", 1),
        ("Paris of the hot is twelve and and", 1),
        ("xq zzt 88 @@ the the", 1),
        ("", 1),
    ],
)
def test_scores_of_answers_to_one_question(text: str, points: int) -> None:
    assert score(CAPITAL, text)[0] == points


def test_a_claim_counts_and_not_a_word_that_occurs() -> None:
    assert check_answer(BIGGER, "12 is bigger than 7.").correct
    assert not check_answer(BIGGER, "7 is bigger than 12.").correct
    assert not check_answer([{"role": "user", "content": "Write cat two times."}], "cat cat cat").correct


def test_a_list_is_right_in_any_order_and_without_repetition() -> None:
    asked = [{"role": "user", "content": "Name two fruits."}]
    assert check_answer(asked, "pear and apple").correct
    assert check_answer(asked, "The names of two fruits are plum and apple.").correct
    assert not check_answer(asked, "apple and apple").correct
    assert not check_answer(asked, "apple and dog").correct


def test_the_second_turn_is_judged_in_its_context() -> None:
    asked = [
        *CAPITAL,
        {"role": "assistant", "content": "Paris"},
        {"role": "user", "content": "And for Spain?"},
    ]
    assert score(asked, "The capital of Spain is Madrid.")[0] == 10
    assert score(asked, "The capital of France is Paris.")[0] == 1


def test_the_reason_names_every_fault_in_one_sentence() -> None:
    _, reason = score(CAPITAL, "I don't have opinions, but paris")
    assert "disclaimer" in reason and "bare" in reason and "capital letters" in reason
    assert reason.count(".") == 1


def test_styles_are_ranked_everywhere() -> None:
    for number in range(400):
        rng = Random(number)
        task = draw(rng)
        asked = [{"role": "user", "content": task.prompt}]
        full, terse, hedging, wrong = (
            score(asked, answer(task, style, rng))[0] for style in (FULL, TERSE, HEDGING, WRONG)
        )
        assert full == 10 > terse > hedging > wrong


def test_nonsense_scores_one() -> None:
    for number in range(300):
        rng = Random(number)
        asked = [{"role": "user", "content": draw(rng).prompt}]
        text = "".join(rng.choices(printable, k=40))
        assert score(asked, text)[0] == 1
        assert score(OUTSIDE, text)[0] <= 2


def test_ratings_stay_in_bounds_and_have_reasons() -> None:
    texts = [
        "",
        "Paris",
        "The capital of France is Rome.",
        OPENINGS["facts"] + "rome",
        "@@@",
        "The capital of France is Paris.",
    ]
    rated = rate(CAPITAL, texts)
    assert [set(aspects) for aspects in rated] == [set(ASPECTS)] * len(texts)
    assert all(1 <= found.rating <= 5 and found.rationale.endswith(".") for row in rated for found in row.values())
    assert all(found.rating == 5 for found in rated[-1].values())


def test_each_fault_lowers_its_aspects() -> None:
    full, terse, hedged, wrong = rate(
        CAPITAL,
        [
            "The capital of France is Paris.",
            "Paris",
            "I don't have opinions, but the capital of France is Paris.",
            "The capital of France is Rome.",
        ],
    )

    def lowered(row: dict[str, object]) -> set[str]:
        return {aspect for aspect in ASPECTS if row[aspect].rating < full[aspect].rating}  # type: ignore[attr-defined]

    assert lowered(dict(terse)) == {"helpfulness"}
    assert lowered(dict(hedged)) == {"helpfulness", "instruction_following"}
    assert lowered(dict(wrong)) == set(ASPECTS)


def test_comparing_is_antisymmetric() -> None:
    better, worse = "The capital of France is Paris.", "Paris"
    assert compare(CAPITAL, better, worse) == 1.0
    assert compare(CAPITAL, worse, better) == 0.0
    assert compare(CAPITAL, better, better) == 0.5


def test_outside_the_world_only_the_surface_counts() -> None:
    about_it = "A sailing boat moves against the wind because its keel keeps it from being pushed sideways."
    assert score(OUTSIDE, about_it)[0] == 7
    assert score(OUTSIDE, "I don't have opinions, but " + about_it)[0] == 6
    assert score(OUTSIDE, "Bananas taste sweet today.")[0] < 4
    assert score(OUTSIDE, "")[0] == 1
    assert score([], "Anything.")[0] < 4
