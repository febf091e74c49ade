"""Whether a judge that is fickle, blind to content or fond of length is found out."""

from random import Random

from zephyrctl.evaluation import judge_quality
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.results import JudgeAgreement, LengthPreference, PositionBias, RepeatAgreement


def row(score: float | None, **given: object) -> JudgmentRow:
    """A judgment."""
    usual = {"model": "a", "question": "1", "category": "", "turn": 1, "score": score, "judge": "j"}
    return JudgmentRow.model_validate({**usual, **given})


def answer(model: str, question: str, length: int) -> AnswerRow:
    """An answer of that length."""
    return AnswerRow(model=model, question=question, category="", turn=1, messages=[], answer="x" * length)


def test_repeats_tell_how_far_a_judge_agrees_with_itself() -> None:
    rows = [
        row(score, sample=sample, question=q)
        for q, scores in (("1", (8, 8)), ("2", (4, 7)))
        for sample, score in enumerate(scores)
    ]
    assert judge_quality.measure(rows, []).repeats == RepeatAgreement(answers=2, all_equal=0.5, equal=0.5, mean_gap=1.5)
    assert judge_quality.measure([row(5), row(5, question="2")], []).repeats is None


def test_a_judge_that_prefers_what_comes_first_is_found_out() -> None:
    rows = [
        row(float(not swapped), opponent="b", is_swapped=swapped, question=str(number))
        for number in range(10)
        for swapped in (False, True)
    ]
    fair = [
        row(1.0, opponent="b", is_swapped=swapped, question=f"fair {n}") for n in range(10) for swapped in (False, True)
    ]
    found = judge_quality.measure([*rows, *fair], []).position
    assert found == PositionBias(pairs=20, consistent=0.5, prefers_first=0.5, prefers_second=0.0)


def test_a_judge_that_prefers_length_is_found_out() -> None:
    rng = Random(0)
    answers, pairs, ratings = [], [], []
    for number in range(50):
        mine, theirs = rng.sample(range(1, 500), 2)
        answers += [answer("a", str(number), mine), answer("b", str(number), theirs)]
        pairs.append(row(float(mine > theirs), opponent="b", question=str(number)))
        ratings.append(row(1 + 9 * mine / 500, question=str(number)))
    assert judge_quality.measure(pairs, answers).length == LengthPreference(pairs=50, longer_wins=1.0)
    assert judge_quality.measure(ratings, answers).length == LengthPreference(answers=50, rank_correlation=1.0)


def test_ratings_are_compared_with_another_judges() -> None:
    mine = [row(score, question=str(number)) for number, score in enumerate((8, 6, 4, 9))]
    other = [row(score, question=str(number), judge="human") for number, score in enumerate((8, 7, 7, None))]
    found = judge_quality.against(mine, other)
    assert found.answers == 3, "what the other did not rate is not compared"
    assert found.equal == round(1 / 3, 4)
    assert found.within_1 == round(2 / 3, 4)
    assert found.mean_difference == round(-4 / 3, 4)


def test_verdicts_are_compared_with_peoples_whatever_the_order_of_names() -> None:
    mine = [row(1.0, opponent="b", is_swapped=swapped) for swapped in (False, True)]
    mine += [row(float(not swapped), opponent="b", is_swapped=swapped, question="2") for swapped in (False, True)]
    people = [
        row(0.0, model="b", opponent="a", judge="one"),
        row(1.0, model="b", opponent="a", judge="two"),
        row(0.5, model="b", opponent="a", judge="one", question="2"),
    ]
    found = judge_quality.against(mine, people)
    assert (found.verdicts, found.verdicts_equal) == (3, round(2 / 3, 4)), "orders that disagree are a tie"
    assert (found.without_ties, found.without_ties_equal) == (2, 0.5)


def test_nothing_in_common_says_nothing() -> None:
    assert judge_quality.against([row(5)], [row(5, question="other")]) == JudgeAgreement()
