"""Whether undesired openings are found where a sentence opens so, by the rule that names them, and nowhere else."""

import pytest

from zephyrctl.data.cleaning_rules import CleaningRules, list_changes
from zephyrctl.recipe.schema import Clean

RULES = CleaningRules(
    Clean(openings={"experiences": "I don't have personal experiences", "opinions": "I don't have opinions"})
)


def found(answer: str, question: str = "And you?") -> str | None:
    """The rule that leaves out a dialogue with that answer."""
    hit = RULES.find_opening(["user", "assistant"], [question, answer])
    return hit[0] if hit else None


@pytest.mark.parametrize(
    "answer",
    [
        "I don't have personal experiences, but here is a list.",
        "Good question! I don’t have personal experiences.",
        "i DON'T have  personal\nexperiences",
        'Sure.\n\n"I don`t have personal experiences" is what I say.',
        "* I don't have personal experiences",
    ],
)
def test_a_sentence_that_opens_so_is_found_in_any_case_and_apostrophe(answer: str) -> None:
    assert found(answer) == "openings.experiences"


@pytest.mark.parametrize(
    "answer",
    [
        "She said that I don't have personal experiences.",
        "I don't have personal experiencesses.",
        "I do not have personal experiences.",
        "I have personal experiences.",
        "",
    ],
)
def test_other_sentences_stay(answer: str) -> None:
    assert found(answer) is None


def test_what_the_user_says_is_no_reason() -> None:
    assert found("Fine.", question="I don't have opinions. And you?") is None


def test_the_first_rule_that_finds_something_is_named_with_its_words() -> None:
    answer = "Well. I don’t have opinions. I don't have personal experiences."
    assert RULES.find_opening(["assistant"], [answer]) == ("openings.experiences", "I don't have personal experiences")


def test_changes_are_told_turn_by_turn() -> None:
    assert list(list_changes("rule", ["a", "b", "c"], ["a", "B", "C"])) == [
        (1, "rule", "b", "B"),
        (2, "rule", "c", "C"),
    ]
