"""Results are read by attribute: those of this version and of the one before, and broken ones are named."""

import json
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow, read_answers, read_judgments
from zephyrctl.evaluation.results import (
    AlpacaEvalResult,
    ArenaResult,
    BenchmarkResult,
    Difference,
    Estimate,
    HeldOutResult,
    LeaderboardResult,
    MtBenchResult,
    WinRate,
    parse_result,
    read_result,
)
from zephyrctl.records import Message, Record
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.manifest import Plan
from zephyrctl.runs.run import Run

BEFORE: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("results_before.json").read_text())
"""The metrics of five evaluations, as the version before typed results wrote them."""
OF_CALLS = {"calls", "calls_from_ledger", "tokens"}
"""What the client of teachers adds to the same metrics."""


def evaluated(run: Run, name: str, metrics: dict[str, Any]) -> Artifact:
    """An evaluation of these metrics in a run."""
    with run.draft(Plan(name=name, stage="eval", settings={}, inputs={}), {}, {}) as draft:
        draft.metrics = metrics
        return draft.finish()


@pytest.mark.parametrize("name", BEFORE)
def test_a_result_of_the_version_before_loads_to_the_same_values(name: str, tmp_path: Path) -> None:
    artifact = evaluated(Run(tmp_path), name, BEFORE[name])
    result = read_result(artifact.manifest)
    assert result.as_json() == {key: value for key, value in BEFORE[name].items() if key not in OF_CALLS}
    assert parse_result(result.as_json(), name) == result, "and again"


def test_each_result_is_of_its_own_kind() -> None:
    kinds = [HeldOutResult, MtBenchResult, AlpacaEvalResult, ArenaResult, LeaderboardResult]
    assert [type(parse_result(metrics, name)) for name, metrics in BEFORE.items()] == kinds


def test_values_are_read_by_attribute() -> None:
    held_out = parse_result(BEFORE["eval"], "eval")
    assert isinstance(held_out, HeldOutResult) and held_out.judge
    assert list(held_out.model_scores) == ["base", "sft", "dpo"]
    assert list(held_out.differences) == ["sft_minus_base", "dpo_minus_sft"]
    assert held_out.model_scores["sft"] == Estimate.model_validate(BEFORE["eval"]["scores"]["sft"])
    assert held_out.judge.rule_based

    mt_bench = parse_result(BEFORE["mt-bench"], "mt-bench")
    assert isinstance(mt_bench, MtBenchResult) and mt_bench.contamination and mt_bench.judge_quality.repeats
    stated = BEFORE["mt-bench"]["models"]["dpo"]
    scores = mt_bench.models["dpo"]
    assert scores.estimate == Estimate(mean=stated["score"], low=stated["low"], high=stated["high"], n=stated["rated"])
    assert scores.turn(2) == Estimate(
        mean=stated["turn_2"], low=stated["intervals"]["turn_2"][0], high=stated["intervals"]["turn_2"][1]
    )
    assert mt_bench.differences["dpo_minus_sft"] == Difference(**BEFORE["mt-bench"]["differences"]["dpo_minus_sft"])
    assert mt_bench.contamination.by_question == {"83": ["build"]}
    assert mt_bench.judge_quality.figures()["repeats"]["answers"] == 22

    alpaca_eval = parse_result(BEFORE["alpaca-eval"], "alpaca-eval")
    assert isinstance(alpaca_eval, AlpacaEvalResult)
    rate = alpaca_eval.models["sft"].estimate
    assert rate and rate.mean == BEFORE["alpaca-eval"]["models"]["sft"]["win_rate"] and rate.n == 30

    leaderboard = parse_result(BEFORE["open-llm"], "open-llm")
    assert isinstance(leaderboard, LeaderboardResult)
    assert leaderboard.models["dpo"].estimate("arc") == Estimate(mean=61.23, low=58.44, high=64.02, n=1172)
    assert leaderboard.models["dpo"].estimate("hellaswag") is None

    arena = parse_result(BEFORE["arena"], "arena")
    assert isinstance(arena, ArenaResult)
    assert arena.matches["dpo_over_sft"] == WinRate(**BEFORE["arena"]["matches"]["dpo_over_sft"])
    assert sum(rating.rating for rating in arena.ratings.values()) == pytest.approx(2000, abs=0.1)


def test_an_interval_follows_from_a_standard_error_if_none_was_recorded() -> None:
    metrics = {"benchmark": "open-llm", "models": {"a": {"arc": 60.0, "standard_errors": {"arc": 1.0}}}}
    result = parse_result(metrics, "open-llm")
    assert isinstance(result, LeaderboardResult)
    estimate = result.models["a"].estimate("arc")
    assert estimate and (estimate.low, estimate.high) == pytest.approx((58.04, 61.96), abs=0.001)


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("eval", {"scores": {"sft": {"mean": "high", "low": 1, "high": 2, "n": 3}}}, "scores.sft.mean"),
        ("eval", {"pairwise": []}, "pairwise"),
        ("mt-bench", {"models": {"sft": {"score": float("nan")}}}, "models.sft.score"),
        ("mt-bench", {"models": None}, "models"),
        ("mt-bench", {"differences": {"dpo_minus_sft": {"mean": 1.0, "low": 0.0, "high": 2.0, "n": 9}}}, "minus_sft.p"),
        ("alpaca-eval", {"models": {"sft": {"win_rate": "50 %"}}}, "models.sft.win_rate"),
        ("open-llm", {"models": {"sft": {"intervals": {"arc": [1.0]}}}}, "models.sft.intervals.arc"),
        ("arena", {"ratings": {"sft": {"rating": None}}}, "ratings.sft.rating"),
    ],
)
def test_a_broken_value_is_an_error_that_names_artifact_and_field(
    name: str, change: dict[str, Any], field: str, tmp_path: Path
) -> None:
    with pytest.raises(ZephyrError) as caught:
        parse_result(BEFORE[name] | change, name)
    assert f"the result of {name} cannot be read: metrics." in caught.value.problem
    assert field in caught.value.problem
    assert "evaluate again" in caught.value.remedy


def test_the_result_of_an_unknown_benchmark_is_refused_by_name() -> None:
    with pytest.raises(ZephyrError) as caught:
        parse_result({"benchmark": "mtbench", "models": {}}, "mtbench")
    assert "'mtbench' that is not installed" in caught.value.problem
    assert "mt-bench" in caught.value.remedy


def test_what_was_not_measured_has_no_key() -> None:
    result = BenchmarkResult(benchmark="mt-bench", comparability=[])
    assert result.as_json() == {"benchmark": "mt-bench", "comparability": []}


class RowBefore(Record):
    """A judged held-out answer, as the version before wrote it."""

    checkpoint: str
    prompt_id: str
    turn: int
    messages: list[Message]
    answer: str
    score: float | None
    reason: str
    judge: str


class BenchmarkAnswerBefore(Record):
    """A benchmark's answer, as the version before wrote it."""

    model: str
    question: str
    category: str
    turn: int
    asked: list[Message]
    answer: str
    finish_reason: str
    answered_at: float


def test_held_out_answers_of_the_version_before_load(tmp_path: Path) -> None:
    asked = [Message(role="user", content="Why?")]
    rows = [
        RowBefore(
            checkpoint=name,
            prompt_id="p",
            turn=1,
            messages=asked,
            answer=f"{name}!",
            score=score,
            reason="brief",
            judge="offline",
        )
        for name, score in (("sft", 4.0), ("dpo", None))
    ]
    with Run(tmp_path).draft(Plan(name="eval", stage="eval", settings={}, inputs={}), {}, {}) as draft:
        draft.write("answers", "test", rows, RowBefore)
        artifact = draft.finish()
    assert list(read_answers(artifact)) == [
        AnswerRow(model=name, question="p", turn=1, messages=asked, answer=f"{name}!") for name in ("sft", "dpo")
    ]
    assert list(read_judgments(artifact)) == [
        JudgmentRow(model=name, question="p", turn=1, score=score, text="brief", judge="offline")
        for name, score in (("sft", 4.0), ("dpo", None))
    ]


def test_a_benchmarks_answers_of_the_version_before_load(tmp_path: Path) -> None:
    asked = [Message(role="user", content="Why?")]
    row = BenchmarkAnswerBefore(
        model="sft",
        question="81",
        category="math",
        turn=1,
        asked=asked,
        answer="4",
        finish_reason="stop",
        answered_at=1.0,
    )
    with Run(tmp_path).draft(Plan(name="mt-bench", stage="eval", settings={}, inputs={}), {}, {}) as draft:
        draft.metrics = {"benchmark": "mt-bench"}
        draft.write("answers", "test", [row], BenchmarkAnswerBefore)
        artifact = draft.finish()
    (answer,) = read_answers(artifact)
    assert (answer.messages, answer.category, answer.finish_reason, answer.answered_at) == (asked, "math", "stop", 1.0)
    assert list(read_judgments(artifact)) == [], "a benchmark's judgments are never in its answers"
