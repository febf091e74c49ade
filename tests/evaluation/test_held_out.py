"""Whether checkpoints are asked turn by turn, and whether their scores are summed up prompt by prompt."""

import pytest

from tests.data.rows_made import prompt
from zephyrctl.evaluation.held_out import conversation, outcome, pairings, prompt_means, summarize
from zephyrctl.evaluation.judged_rows import JudgmentRow
from zephyrctl.evaluation.results import MeanEstimate
from zephyrctl.records import Message, Prompt


def judged(model: str, prompt: str, score: float | None, turn: int = 1) -> JudgmentRow:
    """The judgment of an answer."""
    return JudgmentRow(model=model, question=prompt, turn=turn, score=score, judge="test")


def test_a_conversation_goes_up_to_the_first_unanswered_turn() -> None:
    asked = prompt("one", "two", "three")

    def shown(*answers: str) -> list[str]:
        return [message.content for message in conversation(asked, answers)]

    assert shown() == ["one"]
    assert shown("1") == ["one", "1", "two"]
    assert shown("1", "2") == ["one", "1", "two", "2", "three"]


def test_a_conversation_holds_the_checkpoints_own_answers_and_never_the_prompts() -> None:
    asked = prompt("one", "two")
    assert [message.content for message in asked.messages] == ["one", "Yes.", "two"]
    turns = conversation(asked, ["mine"])
    assert [message.role for message in turns] == ["user", "assistant", "user"]
    assert "Yes." not in [message.content for message in turns]


def test_a_system_turn_opens_every_conversation() -> None:
    system = Message(role="system", content="Be brief.")
    asked = Prompt(id="x", messages=[system, *prompt("one", "two").messages], source="test")
    for answers in ((), ("1",)):
        turns = conversation(asked, answers)
        assert turns[0] == system
        assert turns[-1].role == "user"
        assert len(turns) == 2 + 2 * len(answers)


def test_a_prompts_score_is_the_mean_of_its_turns() -> None:
    rows = [judged("sft", "a", 4, 1), judged("sft", "a", 8, 2), judged("sft", "b", 1), judged("dpo", "a", 10)]
    assert prompt_means(rows) == {"sft": {"a": 6.0, "b": 1.0}, "dpo": {"a": 10.0}}


def test_an_answer_without_a_score_is_left_out_of_the_mean() -> None:
    rows = [judged("sft", "a", None, 1), judged("sft", "a", 8, 2), judged("sft", "b", None)]
    assert prompt_means(rows) == {"sft": {"a": 8.0}}


def rows_of(checkpoint: str, *scores: float | None) -> list[JudgmentRow]:
    """Judgments of answers to prompts 0, 1, 2, ..."""
    return [judged(checkpoint, str(place), score) for place, score in enumerate(scores)]


MATCHES = [("sft", "base"), ("dpo", "sft")]


def test_a_summary_pairs_each_checkpoint_with_its_start() -> None:
    rows = [*rows_of("base", 1, 1, 1), *rows_of("sft", 2, 5, 8), *rows_of("dpo", 4, 7, 10)]
    told = summarize(rows, {("dpo", "sft"): [1.0, 0.5, 1.0]}, MATCHES)
    scores = told.scores
    assert list(scores) == ["base", "sft", "dpo", "sft_minus_base", "dpo_minus_sft"]
    assert [score.mean for score in scores.values()] == [1.0, 5.0, 7.0, 4.0, 2.0]
    assert (scores["dpo_minus_sft"].low, scores["dpo_minus_sft"].high) == (2.0, 2.0)
    low, high = scores["dpo"].low, scores["dpo"].high
    assert low and high and low < 7.0 < high
    assert told.pairwise["dpo_over_sft"].wins == 2
    assert (told.answers, told.unparsed) == (9, 0)


def test_a_difference_takes_only_prompts_that_both_sides_have() -> None:
    rows = [*rows_of("sft", 2, None, 8), *rows_of("dpo", 4, 7, None)]
    told = summarize(rows, {}, MATCHES)
    assert told.scores["dpo_minus_sft"] == MeanEstimate(mean=2.0, low=2.0, high=2.0, n=1)
    assert told.unparsed == 2
    assert told.answers == 6
    assert "sft_minus_base" not in told.scores


def test_a_checkpoint_that_the_judge_never_scored_has_no_score_and_no_difference() -> None:
    told = summarize([*rows_of("sft", 2, 3), *rows_of("dpo", None, None)], {("dpo", "sft"): []}, MATCHES)
    assert list(told.scores) == ["sft"]
    assert told.pairwise == {}
    assert told.unparsed == 2
    apart = summarize([*rows_of("sft", 2, None), *rows_of("dpo", None, 5)], {}, MATCHES)
    assert list(apart.scores) == ["sft", "dpo"]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([1.0, 1.0], 1.0),
        ([0.0, 0.0], 0.0),
        ([0.5, 0.5], 0.5),
        ([1.0, 0.0], 0.5),
        ([0.0, 1.0], 0.5),
        ([1.0, 0.5], 0.5),
        ([None, 1.0], None),
        ([1.0, None], None),
        ([None, None], None),
    ],
)
def test_two_orders_must_agree_for_a_win(verdicts: list[float | None], expected: float | None) -> None:
    assert outcome(verdicts) == expected


def test_each_is_compared_with_its_start_and_the_last_with_all() -> None:
    starts = {"ddpo": "base", "dsft-1": "base", "dsft-2": "dsft-1", "ddpo-dsft": "dsft-1"}
    assert pairings(["base", *starts], starts) == [
        ("ddpo", "base"),
        ("dsft-1", "base"),
        ("dsft-2", "dsft-1"),
        ("ddpo-dsft", "dsft-1"),
        ("ddpo-dsft", "base"),
        ("ddpo-dsft", "ddpo"),
        ("ddpo-dsft", "dsft-2"),
    ]
    assert pairings(["sft", "dpo"], {"sft": "base", "dpo": "sft"}) == [("dpo", "sft")]
    assert pairings(["sft"], {"sft": "base"}) == []
