"""Whether `arena-hard` compares each answer with the baseline in both orders, reads five levels, and weighs them."""

import json
from pathlib import Path

import pytest
import zephyrctl_arena_hard
from zephyrctl_arena_hard import ArenaHard, judgment_row, read_prompts, read_verdict, win_rate

from zephyrctl import plugins
from zephyrctl.errors import UsageError, ZephyrError
from zephyrctl.evaluation.benchmarks.contract import EvaluationRequest
from zephyrctl.evaluation.candidates import Candidate
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.recipe import loading
from zephyrctl.records import Message
from zephyrctl.runs.run import Run
from zephyrctl.testing import check_benchmark, check_plugin


def prompts_file(folder: Path) -> Path:
    """Two prompts, the second of two turns as in Arena-Hard's file."""
    rows = [
        {"id": "one", "prompt": "Name a city.", "category": "facts"},
        {"question_id": "two", "cluster": "chat", "turns": [{"content": "Hello."}, {"content": "And now?"}]},
    ]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepared(folder: Path, *names: str, **given: object) -> ArenaHard:
    """The benchmark, ready to be asked of these models."""
    benchmark = plugins.load().benchmark("arena-hard", {})
    assert isinstance(benchmark, ArenaHard)
    candidates = [Candidate(name, model=f"org/{name}") for name in names]
    recipe = loading.load("tiny", {}).recipe
    benchmark.prepare(
        EvaluationRequest(recipe, Run(folder), candidates, given={"prompts": prompts_file(folder), **given})
    )
    return benchmark


def answers(benchmark: ArenaHard, **texts: str) -> list[AnswerRow]:
    """Every model's answer to every turn."""
    return [
        AnswerRow(
            model=model,
            question=question.id,
            category=question.category,
            turn=turn,
            messages=list(question.conversation((text,) * (turn - 1))),
            answer=text,
        )
        for model, text in texts.items()
        for question in benchmark.questions()
        for turn in range(1, len(question.turns) + 1)
    ]


def judged(score: float | None, question: str = "one", text: str = "words", category: str = "facts") -> JudgmentRow:
    """A judgment with a judge's words."""
    return JudgmentRow(
        model="m", question=question, category=category, turn=1, score=score, judge="j", text=text, opponent="b"
    )


def test_it_is_installed_and_keeps_the_contract(tmp_path: Path) -> None:
    check_plugin(zephyrctl_arena_hard)
    check_benchmark(lambda: plugins.load().benchmark("arena-hard", {}), given={"prompts": prompts_file(tmp_path)})
    assert plugins.load().find("benchmark", "arena-hard").origin.startswith("zephyrctl-arena-hard ")


def test_prompts_of_both_forms_are_read(tmp_path: Path) -> None:
    first, second = read_prompts(prompts_file(tmp_path), 0.5)
    assert (first.id, first.category, first.turns, first.temperature) == ("one", "facts", ("Name a city.",), 0.5)
    assert (second.id, second.category, second.turns) == ("two", "chat", ("Hello.", "And now?"))
    path = tmp_path / "broken.jsonl"
    path.write_text('{"text": "x"}\n')
    with pytest.raises(ZephyrError, match=r"broken\.jsonl:1: a row needs a 'prompt'"):
        list(read_prompts(path, 0.0))


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        ("[[A>>B]]", 1.0),
        ("so [[A>B]]", 0.75),
        ("[[A=B]]", 0.5),
        ("[[ B > A ]]", 0.25),
        ("[[B>>A]].", 0.0),
        ("At first [[A>B]], in the end [[B>>A]]", 0.0),
        ("[[A>A]]", None),
        ("A is better", None),
        ("", None),
    ],
)
def test_five_levels_are_read(reply: str, share: float | None) -> None:
    assert read_verdict(reply) == (share, "" if share is not None else "unparsed")


def test_each_answer_is_compared_with_the_baseline_in_both_orders(tmp_path: Path) -> None:
    benchmark = prepared(tmp_path, "old", "new")
    assert benchmark.baseline == "old", "the first model, if none is named"
    cases = list(benchmark.cases(answers(benchmark, old="Rome", new="Paris")))
    assert [(case.row.model, case.row.question, case.row.is_swapped) for case in cases] == [
        ("new", question, is_swapped) for question in ("one", "two") for is_swapped in (False, True)
    ]
    assert [case.answers for case in cases[:2]] == [("Paris", "Rome"), ("Rome", "Paris")]
    assert [case.read("[[A>>B]]")[0] for case in cases[:2]] == [1.0, 0.0], "the score is that of the model"
    assert [case.read("[[B>A]]")[0] for case in cases[:2]] == [0.25, 0.75]
    assert all("[[A>>B]]" in case.messages[0].content for case in cases)
    assert "user: And now?" in cases[2].messages[1].content, "of a dialogue each model's own turns are shown"


def test_equal_answers_are_a_draw_without_a_judge(tmp_path: Path) -> None:
    benchmark = prepared(tmp_path, "old", "new")
    rows = answers(benchmark, old="Rome", new="Rome")
    assert list(benchmark.cases(rows)) == []
    draws = list(benchmark.undisputed(rows))
    assert [(row.score, row.judge) for row in draws] == [(0.5, "identical outputs")] * 4
    scores = benchmark.scores(benchmark.summarize(draws, rows))
    assert [(score.model, score.estimate.mean, score.estimate.n) for score in scores] == [("new", 50.0, 2)]


def test_a_clear_win_counts_as_three_slight_ones() -> None:
    rate = win_rate([judged(1.0), judged(0.25, "two")], "m")
    assert rate and (rate.mean, rate.n) == (75.0, 2)
    assert (rate.low, rate.high) == (0.0, 100.0)
    by_rules = win_rate([judged(1.0, text=""), judged(0.0, "two", text="")], "m")
    assert by_rules and by_rules.mean == 50.0
    assert win_rate([judged(None)], "m") is None


def test_the_interval_becomes_narrow_with_more_prompts() -> None:
    def width(prompts: int) -> float:
        rate = win_rate([judged(float(number % 2), str(number)) for number in range(prompts)], "m")
        assert rate and rate.low is not None and rate.high is not None and rate.low < 50 < rate.high
        return rate.high - rate.low

    assert width(400) < width(100) / 1.7 < width(25) / 2.9


def test_categories_have_rates_of_their_own(tmp_path: Path) -> None:
    benchmark = prepared(tmp_path, "old", "new")
    result = benchmark.summarize([judged(1.0), judged(0.0, "two", category="chat")], [])
    assert {name: each.mean for name, each in result.models["m"].categories.items()} == {"facts": 100.0, "chat": 0.0}
    assert benchmark.categories(result) == ["facts", "chat"]


def test_a_baseline_in_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "reference.jsonl"
    rows = [
        {"question_id": "one", "model_id": "gpt", "choices": [{"turns": ["Rome"]}]},
        {"question_id": "two", "model_id": "gpt", "choices": [{"turns": ["Hi", "Now"]}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = prepared(tmp_path, "new", baseline=str(path))
    assert benchmark.baseline == "reference"
    assert {row.model for row in benchmark.reference_answers()} == {"reference"}
    assert len(list(benchmark.cases(answers(benchmark, new="Paris")))) == 4
    assert set(benchmark.reads()) == {"prompts", "baseline"}
    assert benchmark.settings()["baseline"] == "reference"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no prompts to ask"):
        prepared(tmp_path, "old", "new", prompts=None)
    with pytest.raises(ZephyrError, match="there is no file"):
        prepared(tmp_path, "old", "new", prompts=tmp_path / "nowhere.jsonl")
    with pytest.raises(UsageError, match="neither a model that answers nor a file"):
        prepared(tmp_path, "old", "new", baseline="older")
    with pytest.raises(ZephyrError, match="there is no other model"):
        prepared(tmp_path, "old")


def test_a_row_is_a_record_with_its_opponent() -> None:
    asked = [Message(role="user", content="?")]
    mine, theirs = (AnswerRow(model=name, question="q", turn=1, messages=asked, answer=name) for name in ("a", "b"))
    row = judgment_row(mine, theirs, is_swapped=True)
    assert (row.model, row.opponent, row.is_swapped, row.score) == ("a", "b", True, None)
