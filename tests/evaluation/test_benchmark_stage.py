"""The whole way of a benchmark: real checkpoints answer, a judge behind HTTP judges, and scores come out."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chat_server import Call, ChatServer, refusal, serve
from tests.conftest import Command
from tests.evaluation.benchmarks_made import alpaca_files, judge_by_rules, mt_bench_files
from zephyrctl.evaluation.assets import Assets
from zephyrctl.evaluation.benchmarks import alpaca_eval, fastchat_files, mt_bench
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.records import Dialogue
from zephyrctl.runs.run import Run

pytestmark = pytest.mark.slow

JUDGED = 32
"""Judgments of two checkpoints' answers to eight questions of two turns."""


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """A judge behind HTTP."""
    with serve() as chat:
        chat.answer = judge_by_rules
        yield chat


@pytest.fixture
def folder(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of one's own with both checkpoints, and the files of both benchmarks."""
    shutil.copytree(small_run, tmp_path, dirs_exist_ok=True)
    trained_on = next(Run(tmp_path / "runs" / "small").require("build", "").read("dialogues", "train", Dialogue))
    mt_bench_files(tmp_path / "files" / "mt-bench", first=trained_on.user_turns()[0])
    alpaca_files(tmp_path / "files" / "alpaca-eval")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    return tmp_path


def by(server: ChatServer, *more: str) -> list[str]:
    """The options that name the judge and the files."""
    return ["--assets", "files", "--judge", "judge-x", "--judge-url", server.base_url, *more]


def test_mt_bench_from_checkpoints_to_scores_resumed_and_never_paid_twice(
    zephyrctl: Command, folder: Path, server: ChatServer
) -> None:
    short = ["--set", "eval.mt_bench.max_new_tokens=12"]
    server.fail(*[refusal(401)] * 2)
    assert zephyrctl("eval", "mt-bench", *by(server, *short)).code == 1, "a wrong key stops all"
    drafts = list((folder / "runs/small/.mt-bench.unfinished/.scratch").glob("answers.journal"))
    assert drafts, "what was answered is kept"
    assert len(drafts[0].read_text().splitlines()) > 2, "batch after batch"
    outcome = zephyrctl("eval", "mt-bench", *by(server, *short), "--json")
    assert outcome.code == 0, outcome.err
    metrics = outcome.json["metrics"]
    assert set(metrics["models"]) == {"sft", "dpo"}
    artifact = Run(folder / "runs" / "small").require("mt-bench", "")
    answers = list(artifact.read("answers", "test", AnswerRow))
    judged = list(artifact.read("judgments", "test", JudgmentRow))
    assert len(answers) == len(judged) == JUDGED
    for name, one in metrics["models"].items():
        scores = [row.score for row in judged if row.model == name and row.score is not None]
        assert one["score"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)
        assert one["rated"] == 16 and one["low"] <= one["score"] <= one["high"]
    assert metrics["judge"]["models"] == ["rules-2024-05-13"], "the id that the server reported"
    assert any("rules-2024-05-13" in line for line in metrics["comparability"])
    assert any("8 of 80 questions" in line for line in metrics["comparability"])
    assert any("at most 12 tokens" in line for line in metrics["comparability"])
    assert metrics["token_contract"]["sft"] == metrics["token_contract"]["dpo"]
    assert metrics["contamination"]["questions"] == 8
    assert {"build", "binarize"} == set(metrics["contamination"]["searched"])
    assert "build" in metrics["contamination"]["by_question"]["81"], "it is what a training dialogue asks"
    held = set(metrics["contamination"]["by_question"])
    clean = [row.score for row in judged if row.model == "dpo" and row.question not in held and row.score is not None]
    without = metrics["contamination"]["scores_without_them"]
    assert set(without) == ({"sft", "dpo"} if clean else set())
    assert not clean or without["dpo"] == pytest.approx(sum(clean) / len(clean), abs=1e-6)
    assert metrics["differences"]["dpo_minus_sft"]["n"] == 8
    second = [answer for answer in answers if answer.turn == 2]
    firsts = {(answer.model, answer.question): answer.answer for answer in answers if answer.turn == 1}
    assert all(answer.messages[1].content == firsts[answer.model, answer.question] for answer in second)

    calls = len(server.calls)
    assert zephyrctl("eval", "mt-bench", *by(server, *short), "--json").json["unchanged"] is True
    fresh = zephyrctl("eval", "mt-bench", *by(server, *short), "--fresh", "--json")
    assert fresh.code == 0 and len(server.calls) == calls, "the ledger has every judgment"
    assert fresh.json["metrics"]["models"] == metrics["models"]

    bench = mt_bench.load(Assets("mt-bench", folder / "files"))
    out = folder / "runs/small/mt-bench/fastchat"
    read = fastchat_files.read_answers(out / "model_answer" / "dpo.jsonl", bench.questions)
    assert [answer.answer for answer in read] == [answer.answer for answer in answers if answer.model == "dpo"]
    again = zephyrctl(
        "eval", "mt-bench", "--judgments", out / "model_judgment" / "rules-2024-05-13_single.jsonl", "--json"
    )
    assert again.json["models"]["dpo"]["score"] == metrics["models"]["dpo"]["score"]
    from_file = zephyrctl(
        "eval",
        "mt-bench",
        "--run",
        "other",
        *by(server),
        "--answers",
        f"old={out / 'model_answer' / 'dpo.jsonl'}",
        "--json",
    )
    assert from_file.json["metrics"]["models"]["old"]["score"] == metrics["models"]["dpo"]["score"]
    lines = (out / "model_answer" / "dpo.jsonl").read_text().splitlines(keepends=True)
    (folder / "part.jsonl").write_text("".join(lines[:6]))
    part = zephyrctl("eval", "mt-bench", "--run", "third", *by(server), "--answers", "part.jsonl", "--json")
    assert part.json["metrics"]["models"]["part"]["missing"] == 4
    assert "4 of 16 answers of part are missing" in part.json["metrics"]["comparability"]
    compared = zephyrctl("eval", "compare", "sft", "dpo", "--benchmark", "mt-bench", "--json")
    assert compared.json["comparisons"][0]["difference"]["mean"] == metrics["differences"]["dpo_minus_sft"]["mean"]


def test_alpaca_eval_from_a_checkpoint_to_a_win_rate(zephyrctl: Command, folder: Path, server: ChatServer) -> None:
    short = ["--checkpoint", "dpo", "--set", "eval.alpaca_eval.max_new_tokens=12"]
    outcome = zephyrctl("eval", "alpaca-eval", *by(server, *short), "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json["metrics"]["models"]["dpo"]
    assert found["n"] == 30 == found["wins"] + found["losses"] + found["draws"]
    assert found["missing"] == 0
    artifact = Run(folder / "runs" / "small").require("alpaca-eval", "")
    answers = list(artifact.read("answers", "test", AnswerRow))
    assert {answer.model for answer in answers} == {"dpo", "old"}
    judged = list(artifact.read("judgments", "test", JudgmentRow))
    assert {row.is_swapped for row in judged} == {True, False}
    out = folder / "runs/small/alpaca-eval/alpaca_eval/dpo"
    again = zephyrctl("eval", "alpaca-eval", "--annotations", out / "annotations.json", "--json").json
    assert {key: again[key] for key in ("win_rate", "standard_error", "n", "wins", "length_controlled")} == {
        key: found[key] for key in ("win_rate", "standard_error", "n", "wins", "length_controlled")
    }
    bench = alpaca_eval.load(Assets("alpaca-eval", folder / "files"))
    assert len(alpaca_eval.read_answers(out / "model_outputs.json", bench.questions)) == 30


def test_an_arena_of_checkpoints_and_files_rates_them_all(zephyrctl: Command, folder: Path, server: ChatServer) -> None:
    server.answer = ChatServer().answer  # our own comparing prompt, by the rules
    outcome = zephyrctl("eval", "arena", *by(server), "--checkpoint", "sft", "--checkpoint", "dpo", "--json")
    assert outcome.code == 0, outcome.err
    metrics = outcome.json["metrics"]
    assert set(metrics["ratings"]) == {"sft", "dpo"}
    assert sum(one["rating"] for one in metrics["ratings"].values()) == pytest.approx(2000, abs=0.1)
    assert metrics["judge_quality"]["position"]["consistent"] == 1.0, "rules do not look at the order"
    (written,) = (folder / "runs/small/arena/fastchat/model_judgment").iterdir()
    again = zephyrctl("eval", "arena", "--judgments", written, "--json").json
    assert again["matches"] == metrics["matches"]
    match = metrics["matches"]["sft_over_dpo"]
    assert match["wins"] + match["losses"] + match["draws"] == match["n"]


def test_a_judge_that_cannot_be_read_fails_the_gate_and_nothing_is_lost(
    zephyrctl: Command, folder: Path, server: ChatServer
) -> None:
    def mumble(call: Call) -> str:
        return "I would say eight." if len(server.calls) % 4 == 0 else judge_by_rules(call)

    server.answer = mumble
    short = ["--checkpoint", "sft", "--set", "eval.mt_bench.max_new_tokens=8"]
    outcome = zephyrctl("eval", "mt-bench", *by(server, *short))
    assert outcome.code == 3
    assert "unparsed" in outcome.err and "eval.unparsed_share" in outcome.err
    calls = len(server.calls)
    loosened = zephyrctl(
        "eval", "mt-bench", *by(server, *short), "--set", "eval.unparsed_share=0.5", "--fresh", "--json"
    )
    assert loosened.code == 0, loosened.err
    assert len(server.calls) == calls, "what was judged is not paid again"
    found = loosened.json["metrics"]["models"]["sft"]
    assert found["unparsed"] > 0 and found["rated"] + found["unparsed"] == 16
    assert loosened.json["dropped"] == {"judgments without a score: unparsed": found["unparsed"]}


def test_the_cost_is_forecast_and_a_budget_holds(zephyrctl: Command, folder: Path, server: ChatServer) -> None:
    (folder / "prices.yaml").write_text("models: {judge-x: {input: 100, output: 1000}}\n")
    short = ["--checkpoint", "sft", "--set", "eval.mt_bench.max_new_tokens=8"]
    told = zephyrctl("eval", "mt-bench", *by(server, *short), "--dry-run", "--json").json["dry_run"][0]["costs"]
    assert told["calls"] == {"low": 16.0, "high": 16.0}
    assert 0 < told["usd"]["low"] < told["usd"]["high"]
    assert not server.calls, "a forecast makes no calls"
    stopped = zephyrctl("eval", "mt-bench", *by(server, *short), "--max-usd", "2.1")
    assert stopped.code == 1 and "the budget is used up" in stopped.err
    made = len(server.calls)
    assert made < 16
    done = zephyrctl("eval", "mt-bench", *by(server, *short), "--max-usd", "1000", "--json")
    assert done.code == 0, done.err
    assert len(server.calls) == 16, "what the first one paid for is not paid again"


def test_held_out_prompts_have_a_forecast_and_a_budget_too(
    zephyrctl: Command, folder: Path, server: ChatServer
) -> None:
    server.answer = ChatServer().answer
    (folder / "prices.yaml").write_text("models: {judge-x: {input: 100, output: 1000}}\n")
    options = f"{{model: judge-x, base_url: '{server.base_url}'}}"
    asked = ["--set", "eval.judge.name=openai", "--set", f"eval.judge.options={options}", "--checkpoint", "sft"]
    told = zephyrctl("eval", *asked, "--dry-run", "--json").json["dry_run"][0]["costs"]
    assert not server.calls
    stopped = zephyrctl("eval", "tiny", *asked, "--max-usd", "0.6")
    assert stopped.code == 1 and "the budget is used up" in stopped.err
    done = zephyrctl("eval", *asked, "--max-usd", "1000", "--json")
    assert done.code == 0, done.err
    made = len({json.dumps(call.body, sort_keys=True) for call in server.calls})
    assert len(server.calls) == made, "no call was made twice"
    assert made <= told["calls"]["high"], "answers that are alike are asked about once"
    assert made > 0.5 * told["calls"]["high"]


def test_a_model_behind_a_server_and_one_in_a_folder_answer_too(
    zephyrctl: Command, folder: Path, server: ChatServer
) -> None:
    both = by(
        server, "--server", server.base_url, "--model", "served=any/model", "--set", "eval.mt_bench.max_new_tokens=8"
    )
    server.answer = lambda call: judge_by_rules(call) if "<<" in call.text else "An answer."
    outcome = zephyrctl("eval", "mt-bench", *both, "--json")
    assert outcome.code == 0, outcome.err
    metrics = outcome.json["metrics"]
    assert set(metrics["models"]) == {"served"}
    assert any("chooses the chat template" in line for line in metrics["comparability"])
    asked = [call.body for call in server.calls if "<<" not in call.text]
    assert len(asked) == 16 and {body["temperature"] for body in asked} == {0.0, 0.1, 0.7}
    model = folder / "runs/small/dpo/model"
    own = zephyrctl(
        "eval",
        "mt-bench",
        "--run",
        "o",
        *by(server),
        "--model",
        f"mine={model}",
        "--set",
        "eval.mt_bench.max_new_tokens=8",
        "--json",
    )
    assert own.code == 0, own.err
    assert own.json["metrics"]["models"]["mine"]["rated"] == 16


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mt-bench", "--checkpoint", "dpoo", "--assets", "files"], 1, "no checkpoint 'dpoo'"),
        (["mt-bench", "--assets", "nowhere"], 1, "there is no folder nowhere"),
        (["mt-bench", "--assets", "runs"], 1, "contains no questions of mt-bench"),
        (["mt-bench", "--judge-url", "http://x"], 2, "not which model judges"),
        (["mt-bench", "--server", "http://x"], 2, "not which model answers"),
        (["mt-bench", "--against", "x"], 2, "--judgments FILE"),
        (["mt-bench", "--answers", "nothing.jsonl", "--assets", "files"], 1, "there is no file nothing.jsonl"),
        (["mt-bench", "--model", "./nothing", "--assets", "files"], 1, "there is no folder ./nothing"),
        (["arena", "--checkpoint", "sft"], 1, "an arena needs two models"),
        (
            ["arena", "--questions", "mtbench", "--checkpoint", "sft", "--checkpoint", "dpo"],
            2,
            "did you mean 'mt-bench'?",
        ),
        (["--checkpoint", "sft", "mt-bench"], 2, "stands before 'mt-bench'"),
        (["mtbench"], 2, "mt-bench"),
    ],
)
def test_a_wrong_command_line_says_what_to_type(
    zephyrctl: Command, folder: Path, arguments: list[str], code: int, words: str
) -> None:
    outcome = zephyrctl("eval", *arguments)
    assert (outcome.code, words in outcome.err) == (code, True), outcome.err
    assert not (folder / "runs/small/mt-bench").exists()


def test_two_contestants_of_one_name_are_refused(zephyrctl: Command, folder: Path, server: ChatServer) -> None:
    (folder / "sft.jsonl").write_text(
        json.dumps({"question_id": 81, "model_id": "x", "choices": [{"turns": ["a", "b"]}]})
    )
    outcome = zephyrctl("eval", "mt-bench", *by(server), "--checkpoint", "sft", "--answers", "sft.jsonl")
    assert outcome.code == 1 and "two models are called 'sft'" in outcome.err
