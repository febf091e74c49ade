"""Which answers stand side by side: chosen by lot, each text once, every judgment beside its answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.publishing import runs_made
from tests.publishing.test_report import NASTY, Page, whole_run
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.publishing.answer_browser import (
    FOLDED,
    LONGEST,
    MOST_QUESTIONS,
    MOST_TICKED,
    AnswerBrowser,
    ShownQuestion,
    answer_browser,
    fold,
)
from zephyrctl.publishing.report import render_report
from zephyrctl.publishing.reported_run import ReportedRun
from zephyrctl.records import Message
from zephyrctl.runs.artifacts import Draft
from zephyrctl.runs.run import Run


def laid(run: Run) -> AnswerBrowser:
    found = answer_browser(ReportedRun(run, None, run.artifacts()))
    assert found
    return found


def evaluated(path: Path, answers: list[AnswerRow], judged: list[JudgmentRow]) -> Run:
    """A run with one evaluation of these rows."""

    def write(draft: Draft) -> None:
        draft.write("answers", "test", answers, AnswerRow)
        draft.write("judgments", "test", judged, JudgmentRow)

    run = Run(path)
    runs_made.make_evaluated(run, "mt-bench", write, {"benchmark": "mt-bench", "models": {"one": {"score": 5}}})
    return run


def answered(model: str, question: str = "81", text: str = "Yes.", turn: int = 1) -> AnswerRow:
    asked = [Message(role="user", content="Is it?")]
    return AnswerRow(model=model, question=question, category="math", turn=turn, messages=asked, answer=text)


def judged(model: str, score: float | None, **more: object) -> JudgmentRow:
    row = {"model": model, "question": "81", "category": "math", "turn": 1, "score": score, "judge": "a-judge", **more}
    return JudgmentRow.model_validate(row)


def answers_of(question: ShownQuestion) -> Iterator[tuple[str, str]]:
    return ((one.name.key, one.result) for turn in question.turns for one in turn.answers)


def test_every_evaluation_is_there_and_its_questions_are_counted(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    runs_made.make_benchmarks(run, ["base", "sft", "dpo"], 16)
    found = laid(run)
    assert [(bench.key, bench.shown, bench.total) for bench in found.evaluations] == [
        ("eval", 4, 4),
        ("mt-bench", 16, 16),
        ("alpaca-eval", 16, 16),
        ("arena", 4, 4),
    ]
    assert [name.key for name in found.models] == ["base", "sft", "dpo", "the-reference"]
    assert [question.id for question in found.questions if question.evaluation == "mt-bench"] == [
        str(81 + n) for n in range(16)
    ]
    assert all(len(question.scores.split(",")) == 4 for question in found.questions)
    assert len({question.anchor for question in found.questions}) == len(found.questions)


def test_a_checkpoint_is_compared_with_what_it_was_trained_from(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    runs_made.make_alpaca_eval(run, ["base", "sft", "dpo"], 4)
    found = laid(run)
    assert (found.models[found.left].key, found.models[found.right].key) == ("dpo", "sft")
    assert len(found.ticked) == MOST_TICKED and {found.left, found.right} <= found.ticked


def test_models_that_were_asked_the_same_are_compared(tmp_path: Path) -> None:
    run = Run(tmp_path)
    runs_made.make_mt_bench(run, ["rated-1", "rated-2"], 4)
    runs_made.make_alpaca_eval(run, ["compared"], 4)
    found = laid(run)
    assert [found.models[number].key for number in (found.left, found.right)] == ["compared", "the-reference"]


def test_references_are_compared_only_where_there_is_nothing_else(tmp_path: Path) -> None:
    runs_made.make_alpaca_eval(Run(tmp_path), ["outside-1", "outside-2"], 4)
    found = laid(Run(tmp_path))
    assert {found.models[found.left].key, found.models[found.right].key} == {"outside-1", "outside-2"}


def test_of_many_questions_some_are_drawn_the_same_each_time_and_it_is_said(tmp_path: Path) -> None:
    rows = [answered("one", str(number)) for number in range(MOST_QUESTIONS + 50)]
    run = evaluated(tmp_path, rows, [])
    found = laid(run)
    chosen = [int(question.id) for question in found.questions]
    assert len(chosen) == MOST_QUESTIONS and chosen == sorted(chosen)
    assert max(chosen) > MOST_QUESTIONS, "not the first ones"
    assert found == laid(run)
    assert (
        f"{MOST_QUESTIONS} of {MOST_QUESTIONS + 50} questions, a random sample by the hash"
        in Page(render_report(run, None)).text
    )


def test_repeated_ratings_are_averaged_and_all_their_words_are_kept(tmp_path: Path) -> None:
    rows = [judged("one", 4.0, text="Fair."), judged("one", 7.0, sample=1, text="Good."), judged("one", None, sample=2)]
    (question,) = laid(evaluated(tmp_path, [answered("one")], rows)).questions
    assert dict(answers_of(question)) == {"one": "5.50"}
    assert float(question.scores) == pytest.approx((5.5 - 1) / 9, abs=1e-3)
    judgments = question.turns[0].answers[0].judgments
    assert [judgment.result for judgment in judgments] == ["4.00", "7.00", "no score"]
    assert [judgment.text.head for judgment in judgments] == ["Fair.", "Good.", ""]


def test_a_match_counts_for_both_once(tmp_path: Path) -> None:
    beside = {"opponent": "two", "text": "The first is better. " * 12}
    rows = [judged("one", 1.0, **beside), judged("one", 0.5, is_swapped=True, **beside)]
    (question,) = laid(evaluated(tmp_path / "once", [answered("one"), answered("two")], rows)).questions
    assert dict(answers_of(question)) == {"one": "won 1, drew 1", "two": "drew 1, lost 1"}
    one, two = question.turns[0].answers
    assert [judgment.opponent for judgment in one.judgments] == [
        "against two, shown first",
        "against two, shown second",
    ]
    assert [judgment.opponent for judgment in two.judgments] == [
        "against one, shown second",
        "against one, shown first",
    ]
    assert all(judgment.text.head for judgment in one.judgments) and not any(
        judgment.text.head for judgment in two.judgments
    )
    twice = [*rows, judged("two", 0.0, opponent="one")]
    (question,) = laid(evaluated(tmp_path / "twice", [answered("one"), answered("two")], twice)).questions
    assert dict(answers_of(question))["two"] == "lost"


def test_an_answer_that_nobody_judged_has_no_mark(tmp_path: Path) -> None:
    (question,) = laid(evaluated(tmp_path, [answered("one"), answered("two")], [judged("one", None)])).questions
    assert dict(answers_of(question)) == {"one": "no score", "two": ""}
    assert question.scores == ","


@pytest.mark.parametrize("length", [0, 10, FOLDED, 5 * FOLDED, LONGEST, LONGEST + 5000])
def test_a_text_is_folded_between_words_and_nothing_of_it_stands_twice(length: int) -> None:
    text = ("seven77 " * (length // 8 + 1))[:length].strip()
    found = fold(text)
    joined = f"{found.head} {found.rest}".strip()
    assert joined.split() == text[:LONGEST].split() or found.left_out
    assert len(joined) <= LONGEST
    assert bool(found.rest) == (length > FOLDED * 1.25) and len(found.head) <= FOLDED * 1.25
    assert found.left_out == (f"{len(text) - LONGEST:,}" if len(text) > LONGEST else "")


def test_a_text_without_a_space_is_cut_all_the_same() -> None:
    found = fold("x" * 2000)
    assert (len(found.head), len(found.rest)) == (FOLDED, 2000 - FOLDED)


def test_a_long_answer_is_in_the_page_once(tmp_path: Path) -> None:
    marks = [f"mark-{number}" for number in range(200)]
    html = render_report(evaluated(tmp_path, [answered("one", text=" ".join(marks))], []), None)
    assert all(html.count(f"{mark} ") + html.count(f"{mark}<") == 1 for mark in marks)


def test_ids_of_any_text_make_safe_anchors_of_their_own(tmp_path: Path) -> None:
    ids = ["a b", "a-b", 'a"b', "<b>", "ä" * 90, "x" * 90, "x" * 91]
    found = laid(evaluated(tmp_path, [answered("one", id) for id in ids], []))
    anchors = [question.anchor for question in found.questions]
    assert len(set(anchors)) == len(ids)
    assert all(anchor.replace("-", "").isalnum() and len(anchor) < 60 for anchor in anchors)


def test_hostile_texts_names_and_ids_are_escaped(tmp_path: Path) -> None:
    hostile = f"{runs_made.HOSTILE}{NASTY}"
    rows = [judged(hostile, 5.0, question=hostile, category=hostile, text=hostile * 5, judge=hostile)]
    first = answered(hostile, hostile, hostile).model_copy(
        update={"category": hostile, "messages": [Message(role="user", content=hostile)]}
    )
    other = answered("other", hostile, hostile).model_copy(update={"category": "another"})
    page = Page(render_report(evaluated(tmp_path, [first, other], rows), None))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1 and "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert " ".join(hostile.split()) in page.text


def test_what_was_cut_off_is_said(tmp_path: Path) -> None:
    cut = answered("one").model_copy(update={"finish_reason": "length"})
    assert "Cut off at the token limit." in Page(render_report(evaluated(tmp_path, [cut], []), None)).text


def test_tables_of_another_form_are_passed_over(tmp_path: Path) -> None:
    run = Run(tmp_path)
    runs_made.make_open_llm(run, ["dpo"])
    assert answer_browser(ReportedRun(run, None, run.artifacts())) is None
    html = render_report(run, None)
    assert "There are no judged answers to show" in html
    assert "<script" not in html and "script-src &#39;none&#39;" in html
