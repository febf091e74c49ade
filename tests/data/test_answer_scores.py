"""Whether an answer's score is what the recipe says, and what has none is counted."""

from collections import Counter
from random import Random

import pytest

from zephyrctl.contracts import Answers, NoPair
from zephyrctl.data.answer_scores import answers_of, check_weights, resolve, scores_of
from zephyrctl.data.rated_columns import RatingColumns
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe.schema import Binarize
from zephyrctl.records import Completion, Message, RatedPrompt, Rating
from zephyrctl.runs.parquet import arrow_schema, as_table


def completion(overall: float | None = None, **marks: float | None) -> Completion:
    """An answer with a mark for each aspect that is named."""
    ratings = [Rating(aspect=aspect, value=value) for aspect, value in marks.items()]
    return Completion(model="m", text="t", ratings=ratings, overall=overall)


def prompt(*completions: Completion) -> RatedPrompt:
    """A prompt with these answers."""
    return RatedPrompt(
        id="a", messages=[Message(role="user", content="Why?")], completions=list(completions), source="test"
    )


def score_of(answer: Completion, rules: Binarize, noted: Counter[str]) -> float | None:
    """The score of an answer by itself."""
    ((score,),) = scores_of(RatingColumns.of([prompt(answer)]), rules, noted)
    return score


@pytest.mark.parametrize(
    ("mean", "overall", "score"),
    [
        (1, 10, 1),
        (2, 10, 1),
        (2.5, 10, None),
        (4, 10, None),
        (4.5, 10, 10),
        (5, 10, 10),
        (None, 10, None),
        (1, 9, 9),
        (1, None, None),
        (5, 1, 1),
        (1, 7.5, 7.5),
    ],
)
def test_an_overall_of_ten_is_mended(mean: float | None, overall: float | None, score: float | None) -> None:
    """At most 2 in the mean: it was a 1. Above 4: it is a 10. Between, and without ratings, nobody knows."""
    noted: Counter[str] = Counter()
    assert score_of(completion(overall, honesty=mean), Binarize(score="overall"), noted) == score
    assert noted == ({} if overall != 10 or score == 10 else {"overall_10_was_1" if score else "overall_10_unknown": 1})
    assert score_of(completion(overall, honesty=mean), Binarize(score="overall-as-published"), noted) == overall


def test_weights_are_over_the_aspects_that_have_a_value() -> None:
    rules = Binarize(score="weights", weights={"helpfulness": 3, "honesty": 1})
    assert score_of(completion(helpfulness=5, honesty=1, wit=1), rules, Counter()) == 4
    assert score_of(completion(helpfulness=None, honesty=2), rules, Counter()) == 2
    assert score_of(completion(wit=5), rules, Counter()) is None


GONE = "a rating is missing"
WHOLE = [completion(5, a=4, b=2), completion(6, a=1, b=5)]
LACKING = {
    "one mark": completion(7, a=3, b=None),
    "one aspect": completion(7, a=3),
    "all marks": completion(7, a=None, b=None),
    "all ratings": completion(7),
    "overall": completion(None, a=3, b=3),
    "unknown overall": completion(10, a=3, b=3),
}
"""What an answer may lack beside two whole ones."""


@pytest.mark.parametrize(
    ("score", "lacking", "is_scored", "is_incomplete"),
    [
        ("mean", "one mark", True, True),
        ("mean", "one aspect", True, True),
        ("mean", "all marks", False, True),
        ("mean", "all ratings", False, True),
        ("mean", "overall", True, False),
        ("weights", "one mark", True, True),
        ("weights", "one aspect", True, True),
        ("weights", "all ratings", False, True),
        ("overall", "overall", False, True),
        ("overall", "unknown overall", False, True),
        ("overall", "one mark", True, False),
        ("overall-as-published", "unknown overall", True, False),
        ("overall-as-published", "all ratings", True, False),
    ],
)
def test_what_is_missing_is_dealt_with_as_the_recipe_says(
    score: str, lacking: str, is_scored: bool, is_incomplete: bool
) -> None:
    """Skipped: an answer stays while it has a score. Else an answer that lacks a mark goes, or its prompt."""
    kept: dict[str, list[int] | str] = {}
    for missing in ("skip", "drop-answer", "drop-prompt"):
        noted: Counter[str] = Counter()
        rules = Binarize.model_validate({"missing": missing, "score": score, "weights": {"a": 1, "b": 2}})
        answers = answers_of(prompt(WHOLE[0], LACKING[lacking], WHOLE[1]), rules, noted)
        kept[missing] = answers.cause if isinstance(answers, NoPair) else [one.place for one in answers.scored]
        assert noted["answers_left_out"] == (kept[missing] == [0, 2])
    assert kept["skip"] == ([0, 1, 2] if is_scored else [0, 2])
    assert kept["drop-answer"] == ([0, 2] if is_incomplete else [0, 1, 2])
    assert kept["drop-prompt"] == (GONE if is_incomplete or not is_scored else [0, 1, 2])


def test_an_aspect_without_weight_may_be_missing() -> None:
    rules = Binarize(score="weights", weights={"a": 1, "b": 0}, missing="drop-prompt")
    answers = answers_of(prompt(completion(a=2), completion(a=4, b=None)), rules, Counter())
    assert isinstance(answers, Answers)
    assert [answer.score for answer in answers.scored] == [2, 4]


@pytest.mark.parametrize(("ties", "best"), [("random", [0, 2]), ("first", [0]), ("drop", [])])
def test_ties_are_counted_and_the_recipe_says_who_may_be_chosen(ties: str, best: list[int]) -> None:
    noted: Counter[str] = Counter()
    row = prompt(completion(a=4), completion(a=1), completion(a=4))
    answers = answers_of(row, Binarize.model_validate({"ties": ties}), noted)
    assert isinstance(answers, Answers)
    assert [answer.place for answer in answers.best] == best
    assert noted == {"tied_for_best": 1}


def test_the_order_of_the_aspects_breaks_no_tie() -> None:
    """As floating point does: 4.1 + 4.2 + 4.3 is not 4.3 + 4.2 + 4.1, and 0.1 x 3 + 0.1 x 5 is not 0.1 x 4 x 2."""
    first, second = {"a": 4.1, "b": 4.2, "c": 4.3}, {"a": 4.3, "b": 4.2, "c": 4.1}
    assert sum(first.values()) != sum(second.values())
    for rules in (Binarize(), Binarize(score="weights", weights={"a": 0.1, "b": 0.1, "c": 0.1})):
        assert score_of(completion(**first), rules, Counter()) == score_of(completion(**second), rules, Counter())


@pytest.mark.parametrize("score", ["mean", "weights", "overall", "overall-as-published"])
@pytest.mark.parametrize("missing", ["skip", "drop-answer", "drop-prompt"])
def test_columns_and_company_change_no_score(score: str, missing: str) -> None:
    """Read from a table or from records, alone or with others: prompts of many answers, of one, and of none."""
    rng = Random(3)
    marks = [None, 1.0, 2.5, 5.0]
    answers = [
        completion(
            rng.choice([None, 4.0, 10.0]), **{name: rng.choice(marks) for name in rng.sample("abc", rng.randint(0, 3))}
        )
        for _ in range(60)
    ]
    prompts = [prompt(*answers[start : start + size]) for start, size in enumerate([4, 1, 0, 7] * 10)]
    rules = Binarize.model_validate({"score": score, "missing": missing, "weights": {"a": 2, "b": 1}})
    noted: list[Counter[str]] = [Counter(), Counter(), Counter()]
    alone = [scores_of(RatingColumns.of([one]), rules, noted[0])[0] for one in prompts]
    assert scores_of(RatingColumns.of(prompts), rules, noted[1]) == alone
    table = as_table(prompts, arrow_schema(RatedPrompt))
    (batch,) = table.to_batches()
    for some in (batch, batch.slice(0, 11)):
        assert scores_of(RatingColumns.of_columns(some.column("completions")), rules, Counter()) == alone[: len(some)]
    assert scores_of(RatingColumns.of_columns(batch.slice(5).column("completions")), rules, noted[2]) == alone[5:]
    assert noted[0] == noted[1]
    assert {score for one in alone for score in one} >= {None, 4.0 if score.startswith("overall") else 2.5}


@pytest.mark.parametrize("compat", ["zephyr-v1", "zephyr-fixed"])
@pytest.mark.parametrize(
    "other", [{"strategy": "notus"}, {"score": "overall"}, {"weights": {"a": 1}}, {"options": {"at_least": 1}}], ids=str
)
def test_a_published_rule_rules_other_choices_out(compat: str, other: dict[str, object]) -> None:
    """Those that are as by default are no choices."""
    resolve(Binarize.model_validate({"compat": compat, "ties": "drop"}))
    with pytest.raises(ZephyrError, match=f"binarize.compat is '{compat}' and binarize.{next(iter(other))} is "):
        resolve(Binarize.model_validate({"compat": compat, **other}))


def test_weights_that_weigh_nothing_are_refused() -> None:
    for weights in ({}, {"a": 0.0}):
        with pytest.raises(ZephyrError, match="gives no weight"):
            resolve(Binarize(score="weights", weights=weights))
    with pytest.raises(ZephyrError, match="negative"):
        resolve(Binarize(score="weights", weights={"a": 1, "b": -1}))


def test_an_aspect_that_nobody_rated_has_no_weight() -> None:
    rules = Binarize(score="weights", weights={"honesty": 1, "wit": 2})
    check_weights(rules, {"honesty", "wit", "length"})
    check_weights(rules.model_copy(update={"score": "mean"}), {"honesty"})
    with pytest.raises(ZephyrError, match="'wit'") as caught:
        check_weights(rules, {"length", "honesty"})
    assert caught.value.remedy == "weigh some of: honesty, length"
