"""Whether AlpacaEval's rates are what they are on its leaderboard, and what is judged is what was shown."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.evaluation.benchmarks_made import alpaca_files
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.assets import Assets
from zephyrctl.evaluation.benchmarks import alpaca_eval
from zephyrctl.evaluation.benchmarks.alpaca_eval import (
    AlpacaEvalFiles,
    cases,
    draws,
    is_swapped,
    load,
    read_annotations,
    read_answers,
    read_preference,
    read_ranking,
    summarize,
)
from zephyrctl.evaluation.benchmarks.length_control import LengthPair, length_controlled, read_gamed
from zephyrctl.evaluation.judged_rows import AnswerRow


@pytest.fixture
def bench(tmp_path: Path) -> AlpacaEvalFiles:
    """Thirty instructions of our own."""
    return load(Assets("alpaca-eval", alpaca_files(tmp_path)))


def answered(bench: AlpacaEvalFiles, text: str | None = None) -> list[AnswerRow]:
    """An answer to every instruction; without a text the reference's own."""
    return [
        AnswerRow(
            model="m",
            question=question.id,
            category=question.category,
            turn=1,
            messages=list(question.conversation(())),
            answer=bench.answers[question.id] if text is None else text,
        )
        for question in bench.questions
    ]


def annotations(path: Path, preferences: Sequence[Any], lengths: Sequence[tuple[int, int]] | None = None) -> Path:
    """A file of annotations with these preferences, and answers of these lengths (the model's, the reference's)."""
    rows = [
        {
            "instruction": f"number {place}",
            "output_1": "r" * (lengths[place][1] if lengths else 5),
            "output_2": "m" * (lengths[place][0] if lengths else 5),
            "generator_1": "old",
            "generator_2": "m",
            "dataset": "one",
            "annotator": "j",
            "preference": preference,
        }
        for place, preference in enumerate(preferences)
    ]
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("value", "share"),
    [
        *[(1, 0.0), (2, 1.0), (1.5, 0.5), (0, 0.5), (1.25, 0.25)],
        *[(wrong, None) for wrong in (None, 3, -1, "2", True, math.nan, 0.9)],
    ],
)
def test_preferences_are_read_as_alpaca_eval_reads_them(value: object, share: float | None) -> None:
    assert read_preference(value)[0] == share


def test_the_win_rate_and_its_error_are_alpaca_evals(tmp_path: Path) -> None:
    path = annotations(tmp_path / "a.json", [1, 2, 2, 0, 1.5, None, 2])
    read = read_annotations(path)
    found = summarize(read.judgments, read.lengths, read.duplicates)["m"]
    shares = [0, 1, 1, 0.5, 0.5, 1]
    assert found.win_rate == pytest.approx(100 * statistics.mean(shares), abs=1e-6)
    assert found.standard_error == pytest.approx(100 * statistics.stdev(shares) / math.sqrt(6), abs=1e-6)
    counts = {key: getattr(found, key) for key in ("n", "wins", "losses", "draws", "missing", "duplicates")}
    assert counts == {"n": 6, "wins": 3, "losses": 1, "draws": 2, "missing": 1, "duplicates": 0}
    assert found.low and found.high and found.win_rate and found.low < found.win_rate < found.high
    assert found.categories["one"].n == 6


def test_a_repeated_instruction_counts_once_and_the_last_one(tmp_path: Path) -> None:
    path = annotations(tmp_path / "a.json", [1, 1, 2])
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, {**rows[0], "preference": 2}]))
    read = read_annotations(path)
    found = summarize(read.judgments, read.lengths, read.duplicates)["m"]
    assert (found.n, found.wins, found.duplicates) == (3, 2, 1)


def test_references_of_two_kinds_are_not_mixed(tmp_path: Path) -> None:
    path = annotations(tmp_path / "a.json", [1, 2])
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([rows[0], {**rows[1], "generator_1": "other"}]))
    with pytest.raises(ZephyrError, match="different references"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]", 1.0),
        ("[{'model': 'model_1', 'rank': 2}, {'model': 'model_2', 'rank': 1}]", 0.0),
        ("\n```python\n[{'model': 'model_2', 'rank': 1}, {'model': 'model_1', 'rank': 2}]\n```\n", 0.0),
        ("[{'model': 'model_1', 'rank': 3}, {'model': 'model_2', 'rank': 1}]", None),
        ("[{'model': 'model_2', 'rank': 1}]", None),
        ("model_1 is better", None),
        ("[" * 5000, None),
        ("__import__('os').system('true')", None),
        ("", None),
    ],
)
def test_rankings_are_read_and_never_run(text: str, share: float | None) -> None:
    assert read_ranking(text)[0] == share


def test_the_order_hangs_on_the_instruction_alone_and_both_orders_come(bench: AlpacaEvalFiles) -> None:
    orders = [is_swapped(question.turns[0]) for question in bench.questions]
    assert orders == [is_swapped(question.turns[0]) for question in bench.questions]
    assert 5 < sum(orders) < 25


def test_the_judge_sees_what_the_row_says_and_the_share_is_the_models(bench: AlpacaEvalFiles) -> None:
    for case in cases(bench, answered(bench, "MINE {instruction} {output_1}")):
        text = case.messages[-1].content
        reference = bench.answers[case.row.question]
        assert text.index(f"ONE<<{reference if case.row.is_swapped else 'MINE'}") < text.index("TWO<<")
        assert "MINE {instruction} {output_1}" in text, "what an answer says is no place to fill"
        assert case.answers == ((reference, case.answers[1]) if case.row.is_swapped else (case.answers[0], reference))
        first_wins = "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]"
        assert case.read(first_wins) == (0.0 if case.row.is_swapped else 1.0, "")
        assert (case.sampling.temperature, case.sampling.max_tokens) == (0.0, 100)
        assert [message.role for message in case.messages] == ["system", "user"]


def test_identical_outputs_are_a_draw_that_nobody_is_asked_about(bench: AlpacaEvalFiles) -> None:
    same = answered(bench)
    assert list(cases(bench, same)) == []
    found = list(draws(bench, same))
    assert [row.score for row in found] == [0.5] * len(bench.questions)
    assert list(draws(bench, answered(bench, "else"))) == []


def test_outputs_and_annotations_go_out_in_alpaca_evals_form_and_come_in_again(
    bench: AlpacaEvalFiles, tmp_path: Path
) -> None:
    given = answered(bench, "mine")
    alpaca_eval.write_answers(tmp_path / "out.json", given)
    assert read_answers(tmp_path / "out.json", bench.questions) == given
    rows = [
        case.row.model_copy(update={"score": score, "judge": "j"})
        for case, score in zip(cases(bench, given), [1.0, 0.0, 0.5, None] * 10, strict=False)
    ]
    reference = [one.model_copy(update={"model": bench.reference}) for one in answered(bench)]
    everything = {(one.model, one.question): one for one in [*given, *reference]}
    alpaca_eval.write_annotations(tmp_path / "annotations.json", rows, everything)
    read = read_annotations(tmp_path / "annotations.json")
    assert [row.score for row in read.judgments] == [row.score for row in rows]
    assert read.reference == bench.reference
    written = json.loads((tmp_path / "annotations.json").read_text())
    assert [row["preference"] for row in written[:4]] == [2.0, 1.0, 0, None]


def test_at_equal_length_a_judge_that_only_counts_letters_has_no_preference() -> None:
    rng = Random(0)
    given = []
    for _ in range(400):
        mine, theirs = rng.randint(100, 1000), rng.randint(100, 700)
        given.append((float(rng.random() < (0.9 if mine > theirs else 0.1)), LengthPair(mine, theirs)))
    raw = 100 * statistics.mean(share for share, _ in given)
    found = length_controlled(given)
    assert raw > 60
    assert found.rate == pytest.approx(50, abs=6)
    assert found.low and found.high and found.rate and found.low < found.rate < found.high
    assert found.formula == "length_controlled_minimal"


def test_a_judge_who_looks_at_quality_alone_is_not_corrected() -> None:
    rng = Random(1)
    given = [(float(rng.random() < 0.7), LengthPair(rng.randint(50, 900), rng.randint(50, 900))) for _ in range(600)]
    raw = 100 * statistics.mean(share for share, _ in given)
    assert length_controlled(given).rate == pytest.approx(raw, abs=1.0)


def test_too_few_preferences_and_equal_lengths_have_no_controlled_rate() -> None:
    assert length_controlled([(1.0, LengthPair(1, 2))] * 5).rate is None
    assert length_controlled([(1.0, LengthPair(3, 2))] * 50).rate is None


def test_known_difficulties_are_used_where_their_file_is_there(tmp_path: Path) -> None:
    rng = Random(2)
    lines = ["index,model,instruction_difficulty,preference,std_delta_len,not_gamed_baseline"]
    lines += [f"{place % 100},x,{(place % 100) / 50 - 1},0.5,{rng.gauss(0, 1)},False" for place in range(200)]
    (tmp_path / "df_gamed.csv").write_text("\n".join(lines))
    gamed = read_gamed(tmp_path / "df_gamed.csv")
    assert gamed.difficulty[0] == -1 and len(gamed.preferences) == 200
    given = [(float(place > 50), LengthPair(rng.randint(1, 99), rng.randint(1, 99), place)) for place in range(100)]
    found = length_controlled(given, gamed)
    assert found.formula == "length_controlled_v1"
    assert found.rate and 40 < found.rate < 60
    (tmp_path / "df_gamed.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ZephyrError, match="is not AlpacaEval"):
        read_gamed(tmp_path / "df_gamed.csv")


def test_a_prompt_without_places_for_answers_is_refused(tmp_path: Path) -> None:
    folder = alpaca_files(tmp_path)
    (folder / "alpaca_eval.txt").write_text("<|im_start|>user\n{instruction}<|im_end|>")
    with pytest.raises(ZephyrError, match="is not a prompt for AlpacaEval"):
        load(Assets("alpaca-eval", folder))
