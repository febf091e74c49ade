"""Whether two models are compared on the same questions, and whether a worse one fails the gate only beyond chance."""

import json
from pathlib import Path
from random import Random

import pytest

from tests.conftest import Command
from tests.evaluation.benchmarks.test_alpaca_eval import annotations
from tests.evaluation.benchmarks_made import write_lines
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.compare import compare, compare_summaries
from zephyrctl.evaluation.question_scores import QuestionScores, TotalScore
from zephyrctl.evaluation.score_sources import find
from zephyrctl.runs.run import Run


def marks(model: str, scores: dict[int, float], turns: int = 1, **given: object) -> QuestionScores:
    """A model's scores by question."""
    places = {(str(question), turn): score for question, score in scores.items() for turn in range(1, turns + 1)}
    categories = {str(q): "even" if q % 2 == 0 else "odd" for q in scores}
    return QuestionScores(model, "mt-bench", "here", places, categories, **given)  # type: ignore[arg-type]


def judgments(path: Path, models: dict[str, list[float]]) -> Path:
    """FastChat's judgments of these first turns, by published ids."""
    rows = [
        {"question_id": 81 + place, "model": model, "judge": ["j", "single-v1"], "score": score, "turn": 1}
        for model, scores in models.items()
        for place, score in enumerate(scores)
    ]
    return write_lines(path, rows)


def test_differences_are_paired_by_question_and_b_is_measured_against_a() -> None:
    rng = Random(0)
    hard = {number: rng.uniform(1, 9) for number in range(60)}
    b = {number: score + rng.gauss(0.5, 0.3) for number, score in hard.items()}
    found = compare(marks("a", hard), marks("b", b))
    assert 0.3 < found.difference.low < found.difference.mean < found.difference.high < 0.7
    assert found.difference.p < 0.001
    assert not found.is_worse
    turned = compare(marks("b", b), marks("a", hard))
    assert turned.difference.mean == pytest.approx(-found.difference.mean, abs=1e-4)
    assert turned.is_worse


def test_worse_within_the_tolerance_or_within_chance_is_not_worse() -> None:
    rng = Random(1)
    a = {number: 5.0 + rng.gauss(0, 1) for number in range(100)}
    b = {number: score - 0.5 + rng.gauss(0, 0.2) for number, score in a.items()}
    assert compare(marks("a", a), marks("b", b)).is_worse
    assert not compare(marks("a", a), marks("b", b), tolerance=0.5).is_worse
    noise = {number: score + rng.gauss(-0.05, 2) for number, score in a.items()}
    assert not compare(marks("a", a), marks("b", noise)).is_worse


def test_questions_of_one_of_them_only_are_counted_and_not_compared() -> None:
    found = compare(marks("a", {1: 5, 2: 5, 3: 9}), marks("b", {1: 6, 2: 7, 4: 1, 5: 1}))
    assert (found.shared, found.only_a, found.only_b) == (2, 1, 2)
    assert found.difference.mean == 1.5
    assert (found.score_a, found.score_b) == (5.0, 6.5)
    assert set(found.categories) == {"odd", "even"}


def test_nothing_in_common_and_other_benchmarks_are_errors() -> None:
    with pytest.raises(ZephyrError, match="share no scored question"):
        compare(marks("a", {1: 5}), marks("b", {2: 5}))
    other = QuestionScores("b", "alpaca-eval", "here", {("1", 1): 50.0})
    with pytest.raises(ZephyrError, match="b on alpaca-eval"):
        compare(marks("a", {1: 5}), other)


def test_different_judges_are_remarked() -> None:
    one = marks("a", {1: 5}, judges=frozenset({"gpt-4"}))
    other = marks("b", {1: 6}, judges=frozenset({"claude"}))
    assert compare(one, other).remarks == ["different judges: a by gpt-4 and b by claude"]


def test_summaries_are_compared_unpaired_and_say_so() -> None:
    a, b = TotalScore("a", "open-llm arc", "x", 60.0, 1.0, 1000), TotalScore("b", "open-llm arc", "y", 55.0, 1.0, 1000)
    found = compare_summaries(a, b)
    assert found.is_worse and found.difference.p < 0.001
    assert found.difference.low == pytest.approx(-5 - 1.96 * 2**0.5, abs=0.01)
    assert "not paired" in found.remarks[0]


def test_the_gate_is_exit_3_and_names_the_figures(zephyrctl: Command, tmp_path: Path) -> None:
    rng = Random(2)
    good = [float(rng.randint(6, 9)) for _ in range(80)]
    path = judgments(tmp_path / "j.jsonl", {"old": good, "new": [score - 2 for score in good], "same": good})
    worse = zephyrctl("eval", "compare", f"{path}:old", f"{path}:new", "--json")
    assert worse.code == 3
    assert worse.json["is_worse"] is True
    (compared,) = worse.json["comparisons"]
    assert compared["difference"]["mean"] == -2
    assert compared["difference"]["n"] == 80
    assert set(compared["categories"]) == {
        "writing",
        "roleplay",
        "reasoning",
        "math",
        "coding",
        "extraction",
        "stem",
        "humanities",
    }
    assert "new is worse than old on mt-bench: -2" in worse.err
    assert zephyrctl("eval", "compare", f"{path}:old", f"{path}:new", "--tolerance", "2.5").code == 0
    assert zephyrctl("eval", "compare", f"{path}:old", f"{path}:same").code == 0
    better = zephyrctl("eval", "compare", f"{path}:new", f"{path}:old")
    assert better.code == 0 and "better" in better.out


def test_win_rates_are_compared_in_per_cent(zephyrctl: Command, tmp_path: Path) -> None:
    a = annotations(tmp_path / "a.json", [2, 2, 1, 2])
    b = annotations(tmp_path / "b.json", [2, 1, 1, 0])
    told = zephyrctl("eval", "compare", a, b, "--json").json["comparisons"][0]
    assert told["difference"]["mean"] == 100 * (1.5 - 3) / 4
    assert told["benchmark"] == "alpaca-eval"


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (["nobody", "noone"], 1, "there are no scores of 'nobody'"),
        (["j.jsonl", "j.jsonl:new"], 1, "say which: j.jsonl:old"),
        (["j.jsonl:odl", "j.jsonl:new"], 1, "did you mean 'old'?"),
        (["j.jsonl:old", "a.json"], 1, "there is nothing to compare"),
        (["j.jsonl:old", "other.jsonl"], 1, "holds no scores"),
    ],
)
def test_what_cannot_be_compared_is_said(
    zephyrctl: Command, tmp_path: Path, given: list[str], code: int, words: str
) -> None:
    judgments(tmp_path / "j.jsonl", {"old": [5, 6], "new": [6, 7]})
    annotations(tmp_path / "a.json", [2, 1])
    (tmp_path / "other.jsonl").write_text(json.dumps({"prompt": "x"}))
    outcome = zephyrctl("eval", "compare", *given)
    assert outcome.code == code
    assert words in outcome.err


def test_a_file_of_one_model_needs_no_name(tmp_path: Path) -> None:
    path = judgments(tmp_path / "j.jsonl", {"only": [5, 6]})
    (found,) = find(Run(tmp_path), str(path))
    assert isinstance(found, QuestionScores) and found.model == "only"
    assert found.categories["81"] == "writing"
