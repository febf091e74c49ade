"""Whether MT-Bench is asked, judged and summed up as it was published."""

import json
from pathlib import Path

import pytest

from tests.evaluation.benchmarks_made import GUIDED, mt_bench_files, write_lines
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.assets import Assets
from zephyrctl.evaluation.benchmarks import fastchat_files, mt_bench
from zephyrctl.evaluation.benchmarks.mt_bench import MtBenchFiles, References, cases, load, read_rating, summarize
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.judging import OUT_OF_RANGE, UNPARSED
from zephyrctl.evaluation.results import CategoryScore


@pytest.fixture
def bench(tmp_path: Path) -> MtBenchFiles:
    """Eight questions of our own."""
    return load(Assets("mt-bench", mt_bench_files(tmp_path)))


def answers(bench: MtBenchFiles, model: str = "m") -> list[AnswerRow]:
    """An answer to every turn."""
    return [
        AnswerRow(
            model=model,
            question=question.id,
            category=question.category,
            turn=turn,
            messages=list(question.conversation(tuple(f"{{{question.id}}} {one}" for one in range(1, turn)))),
            answer=f"{{{question.id}}} {turn}",
        )
        for question in bench.questions
        for turn in (1, 2)
    ]


def judged(question: int, turn: int, score: float | None, model: str = "m", **given: object) -> JudgmentRow:
    """A judgment."""
    return JudgmentRow.model_validate(
        {
            "model": model,
            "question": str(question),
            "category": mt_bench.category_of(str(question)),
            "turn": turn,
            "score": score,
            "cause": "" if score is not None else UNPARSED,
            "judge": "j",
            **given,
        }
    )


@pytest.mark.parametrize(
    ("text", "score", "cause"),
    [
        ("Rating: [[8]]", 8.0, ""),
        ("[[7.5]] and then [[3]]", 7.5, ""),
        ("Rating: [6]", 6.0, ""),
        ("in [2] of it, yet [[9]]", 9.0, ""),
        ("Rating: [[10]]", 10.0, ""),
        ("Rating: [[11]]", None, OUT_OF_RANGE),
        ("Rating: [[0]]", None, OUT_OF_RANGE),
        ("Rating: [[85]]", None, OUT_OF_RANGE),
        ("Rating: 8", None, UNPARSED),
        ("Rating: [[eight]]", None, UNPARSED),
        ("Rating: [[-3]]", None, UNPARSED),
        ("", None, UNPARSED),
    ],
)
def test_ratings_are_read_as_fastchat_reads_them_and_none_is_out_of_range(
    text: str, score: float | None, cause: str
) -> None:
    assert read_rating(text) == (score, cause)


@pytest.mark.parametrize(
    ("id", "category"),
    [
        *[("81", "writing"), ("90", "writing"), ("91", "roleplay"), ("105", "reasoning"), ("120", "math")],
        *[("160", "humanities"), ("80", ""), ("161", ""), ("x", "")],
    ],
)
def test_a_published_id_has_its_category(id: str, category: str) -> None:
    assert mt_bench.category_of(id) == category


def test_temperatures_go_by_category(bench: MtBenchFiles) -> None:
    found = {question.category: question.temperature for question in bench.questions}
    assert found == {
        "writing": 0.7,
        "roleplay": 0.7,
        "reasoning": 0.0,
        "math": 0.0,
        "coding": 0.0,
        "extraction": 0.0,
        "stem": 0.1,
        "humanities": 0.1,
    }


def test_guided_categories_are_judged_with_references_and_second_turns_within_their_conversation(
    bench: MtBenchFiles,
) -> None:
    made = list(cases(bench, answers(bench)))
    assert len(made) == 2 * len(bench.questions)
    for case in made:
        system, user = case.messages
        is_guided = case.row.category in GUIDED
        assert case.row.prompt == f"single-{'math-' if is_guided else ''}v1{'-multi-turn' * (case.row.turn - 1)}"
        assert system.role == "system" and case.row.prompt in system.content
        assert ("the key" in user.content) == is_guided
        assert ("the other key" in user.content) == (is_guided and case.row.turn == 2)
        question = next(one for one in bench.questions if one.id == case.row.question)
        assert all(text in user.content for text in question.turns[: case.row.turn])
        assert f"{{{case.row.question}}} {case.row.turn}" in user.content, "braces in answers stay as they are"
        assert (case.sampling.temperature, case.sampling.max_tokens) == (0.0, 2048)


def test_an_answer_whose_first_turn_is_missing_is_not_judged(bench: MtBenchFiles) -> None:
    without = [answer for answer in answers(bench) if (answer.question, answer.turn) != (bench.questions[0].id, 1)]
    assert len(list(cases(bench, without))) == 2 * len(bench.questions) - 2


def test_repeats_are_told_apart(bench: MtBenchFiles) -> None:
    made = list(cases(bench, answers(bench), repeats=3))
    assert len(made) == 6 * len(bench.questions)
    assert {case.row.sample for case in made} == {0, 1, 2}


def test_the_score_is_the_flat_mean_over_what_has_a_rating() -> None:
    rows = [judged(81, 1, 8), judged(81, 2, None), judged(101, 1, 4), judged(101, 2, 6)]
    found = summarize(rows, questions=2)["m"]
    assert found.score == 6.0, "(8 + 4 + 6) / 3, not the mean of the questions' means"
    assert (found.turn_1, found.turn_2) == (6.0, 6.0)
    assert (found.rated, found.unparsed, found.missing) == (3, 1, 0)
    assert found.low and found.high and found.low <= found.score <= found.high
    assert found.intervals == {"turn_1": (4.0, 8.0), "turn_2": (6.0, 6.0)}
    assert found.categories["writing"] == CategoryScore(score=8.0, low=8.0, high=8.0, rated=1)
    assert found.categories["reasoning"].score == 5.0


def test_missing_and_out_of_range_judgments_are_counted() -> None:
    rows = [judged(81, 1, 8), judged(82, 1, None, cause=OUT_OF_RANGE)]
    found = summarize(rows, questions=80)["m"]
    assert (found.missing, found.out_of_range, found.unparsed) == (158, 1, 0)


def test_nothing_rated_is_no_score_and_no_error() -> None:
    found = summarize([judged(81, 1, None)])["m"]
    assert (found.score, found.low, found.rated) == (None, None, 0)


def test_two_judges_of_one_model_are_not_mixed() -> None:
    found = summarize([judged(81, 1, 8), judged(81, 1, 2, judge="other")])
    assert {name: one.score for name, one in found.items()} == {"m by j": 8.0, "m by other": 2.0}


def test_the_interval_is_clustered_by_question() -> None:
    turns_alike = [judged(81 + place, turn, 2 + 6 * (place % 2)) for place in range(40) for turn in (1, 2)]
    found = summarize(turns_alike)["m"]
    assert found.low and found.high
    width = found.high - found.low
    assert width == pytest.approx(2 * 1.96 * 3 / 40**0.5, rel=0.15), "40 questions and not 80 answers"


def test_a_repeated_judgment_counts_once_and_the_last_one(tmp_path: Path) -> None:
    row = {"question_id": 81, "model": "m", "judge": ["j", "single-v1"], "turn": 1, "judgment": "x"}
    path = write_lines(
        tmp_path / "j.jsonl", [{**row, "score": 2}, {**row, "score": 9}, {**row, "turn": 2, "score": -1}]
    )
    read = fastchat_files.read_judgments([path])
    found = summarize(read.judgments, read.duplicates)["m"]
    assert (found.score, found.duplicates, found.unparsed) == (9.0, 1, 1)
    again = fastchat_files.read_judgments([path, path])
    assert summarize(again.judgments, again.duplicates)["m"].duplicates == 4


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"model": "m", "score": 1}, "no 'question_id'"),
        ({"question_id": 81, "model": "m", "score": "8"}, "expected"),
        ({"question_id": 81, "model": "m", "score": 8, "turn": 0}, "turn is 0"),
        ({"question_id": 81, "model_1": "a", "model_2": "b", "g1_winner": "tie", "g2_winner": "tie"}, "pairwise"),
    ],
)
def test_judgments_of_another_form_are_an_error_with_its_place(tmp_path: Path, row: object, problem: str) -> None:
    path = write_lines(tmp_path / "j.jsonl", [row])
    with pytest.raises(ZephyrError, match=problem) as raised:
        fastchat_files.read_judgments([path])
    assert "j.jsonl:1" in raised.value.problem
    assert "--skip-bad-rows" not in raised.value.remedy


def test_answers_and_judgments_go_out_in_fastchats_form_and_come_in_again(bench: MtBenchFiles, tmp_path: Path) -> None:
    given = answers(bench)
    fastchat_files.write_answers(tmp_path / "m.jsonl", given)
    assert fastchat_files.read_answers(tmp_path / "m.jsonl", bench.questions) == given
    row = json.loads((tmp_path / "m.jsonl").read_text().splitlines()[0])
    assert set(row) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert isinstance(row["question_id"], int)
    rows = [judged(81, 1, 7.5, prompt="single-v1", text="[[7.5]]"), judged(81, 2, None, prompt="x", sample=1)]
    fastchat_files.write_judgments(tmp_path / "j.jsonl", rows)
    assert fastchat_files.read_judgments([tmp_path / "j.jsonl"]).judgments == rows


def test_corrected_references_replace_the_old_ones_and_say_which_questions_read_otherwise(tmp_path: Path) -> None:
    folder = mt_bench_files(tmp_path)
    old = load(Assets("mt-bench", folder))
    guided = next(question for question in old.questions if question.category == "math")
    plain = next(question for question in old.questions if question.category == "writing")
    rows = [
        {"question_id": int(guided.id), "turns": ["Reworded?", guided.turns[1]], "reference": ["new", "newer"]},
        {"question_id": int(plain.id), "turns": list(plain.turns), "reference": ["not for the judge", "x"]},
    ]
    write_lines(folder / "mt_bench_inf.jsonl", rows)
    new = load(Assets("mt-bench", folder), "corrected")
    assert new.references[guided.id] == ("new", "newer")
    assert plain.id not in new.references
    assert next(one for one in new.questions if one.id == guided.id).turns[0] == "Reworded?"
    assert any(f"questions {guided.id} have another wording" in remark for remark in new.remarks)
    assert any("corrected references" in remark for remark in new.remarks)


@pytest.mark.parametrize("references", ["original", "corrected"])
def test_a_missing_file_names_what_gets_it(tmp_path: Path, references: References) -> None:
    with pytest.raises(ZephyrError, match="contains no questions of mt-bench") as raised:
        load(Assets("mt-bench", tmp_path), references)
    assert "--assets" in raised.value.remedy


def test_questions_that_are_not_the_published_ones_are_remarked(bench: MtBenchFiles) -> None:
    assert [remark for remark in bench.remarks if "questions are not the published file" in remark]
