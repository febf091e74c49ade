"""Whether published judgments and annotations give the published scores, and our prompts are those that were sent."""

import json
import math
import re
from pathlib import Path

import pytest

from tests.conftest import Command
from zephyrctl.evaluation.assets import Assets
from zephyrctl.evaluation.benchmarks import alpaca_eval, fastchat_files, mt_bench
from zephyrctl.evaluation.judged_rows import AnswerRow

pytestmark = pytest.mark.real


def test_judgments_of_two_routers_give_their_published_scores(zephyrctl: Command, real_data: Path) -> None:
    path = real_data / "mt_bench" / "judgments" / "routellm_commercial_gpt-4_single.jsonl"
    models = zephyrctl("eval", "mt-bench", "--judgments", path, "--json").json["models"]
    assert models["unify"]["score"] == pytest.approx(8.757862, abs=1e-6)
    assert models["martian"]["score"] == pytest.approx(8.3125, abs=1e-6)
    assert {key: models["unify"][key] for key in ("rated", "unparsed", "duplicates")} == {
        "rated": 159,
        "unparsed": 1,
        "duplicates": 0,
    }
    assert len(models["unify"]["categories"]) == 8
    assert models["unify"]["turn_1"] > models["unify"]["turn_2"]
    half = models["unify"]["high"] - models["unify"]["score"]
    assert 0.2 < half < 0.8


def test_recorded_ratings_are_what_our_reader_reads(real_data: Path) -> None:
    path = real_data / "mt_bench" / "judgments" / "routellm_commercial_gpt-4_single.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 320
    for row in rows:
        assert mt_bench.read_rating(row["judgment"])[0] == (None if row["score"] == -1 else row["score"])


def test_our_prompts_are_those_that_the_judge_was_sent(real_data: Path) -> None:
    bench = mt_bench.load(Assets("mt-bench", real_data / "mt_bench"))
    assert not bench.remarks, "the files beside the checkout are the published ones"
    path = real_data / "mt_bench" / "judgments" / "routellm_commercial_gpt-4_single.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    mark = "an answer that nobody gave"
    marked = [
        AnswerRow(
            model="m",
            question=question.id,
            category=question.category,
            turn=turn,
            messages=list(question.conversation((mark,) * (turn - 1))),
            answer=mark,
        )
        for question in bench.questions
        for turn in (1, 2)
    ]
    ours = {(case.row.question, case.row.turn): case for case in mt_bench.cases(bench, marked)}
    for row in rows:
        case = ours[str(row["question_id"]), row["turn"]]
        assert case.row.prompt == row["judge"][1]
        around = case.messages[1].content.split(mark)
        assert len(around) == 1 + row["turn"]
        assert re.fullmatch(".*".join(map(re.escape, around)), row["user_prompt"], re.DOTALL)


def test_answers_of_published_files_are_read_whole(real_data: Path) -> None:
    bench = mt_bench.load(Assets("mt-bench", real_data))
    for name in ("vicuna-7b-v1.3", "gpt-3.5-turbo"):
        answers = fastchat_files.read_answers(real_data / "mt_bench" / "answers" / f"{name}.jsonl", bench.questions)
        assert len(answers) == 160 == len(list(mt_bench.cases(bench, answers)))
        assert {answer.model for answer in answers} == {name}


@pytest.mark.parametrize(
    ("model", "rate", "error"), [("falcon-40b-instruct", 45.714286, 1.752472), ("guanaco-65b", 71.801242, 1.586912)]
)
def test_annotations_give_the_papers_win_rates(
    zephyrctl: Command, real_data: Path, model: str, rate: float, error: float
) -> None:
    path = real_data / "alpaca_eval" / "annotations" / f"{model}.json"
    told = zephyrctl("eval", "alpaca-eval", "--annotations", path, "--json").json
    assert told["win_rate"] == pytest.approx(rate, abs=1e-6)
    assert told["standard_error"] == pytest.approx(error, abs=1e-6)
    assert told["n"] == 805 == told["wins"] + told["losses"] + told["draws"]
    assert (told["missing"], told["comparability"]) == (0, [])
    if model.startswith("falcon"):
        assert (told["wins"], told["losses"], told["draws"]) == (366, 435, 4)


@pytest.mark.parametrize(("model", "rate"), [("falcon-40b-instruct", 39.624065), ("guanaco-65b", 53.426741)])
def test_the_length_controlled_rate_is_alpaca_evals_own(
    zephyrctl: Command, real_data: Path, model: str, rate: float
) -> None:
    """The figures are those of alpaca-eval 0.6.6 on the same files, by `length_controlled_minimal`."""
    path = real_data / "alpaca_eval" / "annotations" / f"{model}.json"
    told = zephyrctl("eval", "alpaca-eval", "--annotations", path, "--json").json
    assert told["length_controlled"] == pytest.approx(rate, abs=1e-4)
    assert told["length_controlled_low"] < rate < told["length_controlled_high"]


def test_outputs_and_annotations_of_one_model_agree_and_identical_outputs_are_draws(real_data: Path) -> None:
    bench = alpaca_eval.load(Assets("alpaca-eval", real_data / "alpaca_eval"))
    assert not bench.remarks and len(bench.questions) == 805
    answers = alpaca_eval.read_answers(
        real_data / "alpaca_eval" / "outputs" / "falcon-40b-instruct.json", bench.questions
    )
    annotated = alpaca_eval.read_annotations(real_data / "alpaca_eval" / "annotations" / "falcon-40b-instruct.json")
    same = {row.question for row in alpaca_eval.draws(bench, answers)}
    assert same == {row.question for row in annotated.judgments if row.score == 0.5}
    assert len(same) == 4
    asked = list(alpaca_eval.cases(bench, answers))
    assert len(asked) == 801
    shown_first = sum(not case.row.is_swapped for case in asked)
    assert abs(shown_first - 400.5) < 3 * math.sqrt(801) / 2


def test_the_difference_of_two_models_is_far_beyond_chance_and_of_two_routers_is_not(
    zephyrctl: Command, real_data: Path
) -> None:
    folder = real_data / "alpaca_eval" / "annotations"
    worse = zephyrctl("eval", "compare", folder / "guanaco-65b.json", folder / "falcon-40b-instruct.json", "--json")
    assert worse.code == 3
    difference = worse.json["comparisons"][0]["difference"]
    assert difference["mean"] == pytest.approx(45.714286 - 71.801242, abs=1e-4)
    assert difference["needed"] < 60
    path = real_data / "mt_bench" / "judgments" / "routellm_commercial_gpt-4_single.jsonl"
    routers = zephyrctl("eval", "compare", f"{path}:unify", f"{path}:martian", "--json")
    assert routers.code == 0
    found = routers.json["comparisons"][0]["difference"]
    assert found["low"] < 0 < found["high"] and found["n"] == 80
