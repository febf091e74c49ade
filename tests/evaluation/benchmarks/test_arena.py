"""Whether ratings are those of the odds behind the verdicts, and a verdict needs both orders."""

import math
from pathlib import Path
from random import Random

import pytest

from tests.evaluation.benchmarks_made import write_lines
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.benchmarks import arena, fastchat_files
from zephyrctl.evaluation.benchmarks.arena import summarize
from zephyrctl.evaluation.bradley_terry import SCALE, Verdict, rate
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.results import ArenaResult
from zephyrctl.records import Message


def answer(model: str, text: str, question: str = "q", turn: int = 1, before: str = "") -> AnswerRow:
    """An answer to a question; a second turn has one before it."""
    asked = [Message(role="user", content=question)]
    if turn > 1:
        asked += [Message(role="assistant", content=before), Message(role="user", content="and then?")]
    return AnswerRow(model=model, question=question, category="", turn=turn, messages=asked, answer=text)


def verdict(first: str, second: str, score: float | None, is_swapped: bool = False, question: str = "q") -> JudgmentRow:
    """One verdict, seen from the first model."""
    return JudgmentRow(
        model=first,
        opponent=second,
        question=question,
        category="",
        turn=1,
        score=score,
        judge="j",
        prompt="compare",
        is_swapped=is_swapped,
    )


def both(first: str, second: str, score: float, question: str) -> list[JudgmentRow]:
    """The same verdict in both orders."""
    return [verdict(first, second, score, swapped, question) for swapped in (False, True)]


def test_ratings_are_the_log_odds_that_verdicts_were_drawn_by() -> None:
    strengths = {"a": 1.0, "b": 0.3, "c": -0.2, "d": -1.1}
    rng = Random(0)
    drawn: dict[str, list[Verdict]] = {}
    for number in range(1500):
        for first, second in (("a", "b"), ("b", "c"), ("c", "d"), ("a", "d"), ("a", "c")):
            wins = rng.random() < 1 / (1 + math.exp(strengths[second] - strengths[first]))
            drawn.setdefault(str(number), []).append((first, second, float(wins)))
    found = rate(drawn)
    assert list(found) == ["a", "b", "c", "d"]
    for name, strength in strengths.items():
        assert found[name].rating == pytest.approx(1000 + SCALE * strength, abs=25)
        assert found[name].low < found[name].rating < found[name].high
    assert sum(one.rating for one in found.values()) / 4 == pytest.approx(1000, abs=0.1)


def test_intervals_cover_the_true_rating_as_often_as_they_say() -> None:
    hits = 0
    for number in range(60):
        rng = Random(number)
        drawn = {str(place): [("a", "b", float(rng.random() < 0.64))] for place in range(80)}
        true = 1000 + SCALE * math.log(0.64 / 0.36) / 2
        found = rate(drawn)["a"]
        hits += found.low <= true <= found.high
    assert 52 <= hits <= 60


def test_one_that_never_lost_has_a_finite_rating_and_a_draw_counts_half() -> None:
    found = rate({str(place): [("a", "b", 1.0)] for place in range(20)})
    assert 1000 < found["a"].rating < 2000
    even = rate({str(place): [("a", "b", 0.5)] for place in range(20)})
    assert even["a"].rating == pytest.approx(1000, abs=1e-6)


def test_islands_that_never_met_are_rated_each_about_the_mean() -> None:
    verdicts: list[Verdict] = [("a", "b", 1.0), ("c", "d", 1.0)]
    found = rate({str(place): verdicts for place in range(10)})
    assert found["a"].rating == pytest.approx(found["c"].rating, abs=1e-3)
    with pytest.raises(ValueError, match="no verdicts"):
        rate({})


def test_every_two_models_meet_in_both_orders_with_the_share_seen_from_the_first() -> None:
    answers = [answer("a", "one"), answer("b", "two"), answer("c", "three"), answer("c", "only c", "other question")]
    made = list(arena.cases(answers, ["a", "b", "c"]))
    assert len(made) == 6
    for case in made:
        text = case.messages[0].content
        shown_first = text.index(case.answers[0]) < text.index(case.answers[1])
        assert shown_first
        assert case.read("[[A]]")[0] == (0.0 if case.row.is_swapped else 1.0)
        assert case.read("[[C]]")[0] == 0.5
        assert case.read("who knows")[0] is None


def test_the_same_text_is_a_draw_without_asking() -> None:
    answers = [answer("a", "same"), answer("b", "same")]
    assert list(arena.cases(answers, ["a", "b"])) == []
    assert summarize(list(arena.draws(answers, ["a", "b"]))).matches["a_over_b"].draws == 1


def test_second_turns_that_follow_other_answers_show_them() -> None:
    answers = [answer("a", "end", turn=2, before="mine"), answer("b", "fin", turn=2, before="yours")]
    text = next(arena.cases(answers, ["a", "b"])).messages[0].content
    assert "mine" in text and "yours" in text


def test_orders_that_disagree_are_a_draw_and_half_a_pair_is_none() -> None:
    rows = [
        *both("a", "b", 1.0, "1"),
        verdict("a", "b", 1.0, question="2"),
        verdict("a", "b", 0.0, is_swapped=True, question="2"),
        verdict("a", "b", 1.0, question="3"),
        verdict("a", "b", None, is_swapped=True, question="3"),
    ]
    match = summarize(rows).matches["a_over_b"]
    assert (match.wins, match.draws, match.losses, match.n) == (1, 1, 0, 2)
    assert summarize(rows).ratings["a"].wins == 1


def test_no_verdict_at_all_is_no_rating_and_no_error() -> None:
    assert summarize([verdict("a", "b", None)]) == ArenaResult(benchmark="arena", ratings={}, matches={})


def test_verdicts_go_out_in_fastchats_form_and_come_in_again(tmp_path: Path) -> None:
    rows = [*both("a", "b", 1.0, "81"), verdict("a", "b", 0.5, question="82"), verdict("a", "b", None, True, "82")]
    fastchat_files.write_pairs(tmp_path / "p.jsonl", rows)
    read = list(fastchat_files.read_pairs(tmp_path / "p.jsonl"))
    assert [(row.question, row.is_swapped, row.score) for row in read] == [
        (row.question, row.is_swapped, row.score) for row in rows
    ]
    assert summarize(read).matches == summarize(rows).matches


def test_peoples_votes_are_read_and_each_counts(tmp_path: Path) -> None:
    votes = [
        {"question_id": 81, "model_a": "a", "model_b": "b", "winner": winner, "judge": judge, "turn": 1}
        for winner, judge in (
            ("model_a", "one"),
            ("model_b", "two"),
            ("tie (inconsistent)", "three"),
            ("model_a", "four"),
        )
    ]
    read = list(fastchat_files.read_pairs(write_lines(tmp_path / "v.jsonl", votes)))
    match = summarize(read).matches["a_over_b"]
    assert (match.wins, match.draws, match.losses) == (2, 1, 1)
    bad = write_lines(tmp_path / "bad.jsonl", [{**votes[0], "winner": "nobody"}])
    with pytest.raises(ZephyrError, match="'nobody' is none of"):
        list(fastchat_files.read_pairs(bad))
