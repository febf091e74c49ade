"""Every command of README and docs, typed where its recipe has run and the files that the pages speak of lie.

What needs a GPU is only planned; what needs a paid judge, the Hub or a benchmark's texts is refused here, in so many
words.
"""

import json
import os
import shlex
import shutil
from pathlib import Path
from random import Random

import pytest

from tests.conftest import Command
from tests.data.rows_made import ultrafeedback_row, write_jsonl
from tests.docs.test_docs import commands
from tests.evaluation.benchmarks.test_alpaca_eval import annotations
from tests.evaluation.benchmarks.test_ifeval import ifeval_file
from tests.evaluation.leaderboard_made import new_file, write_questions
from tests.evaluation.test_compare import judgments

pytestmark = pytest.mark.slow

REFUSED = {
    "data binarize --compat zephyr-v1": "feedback.critique=true",
    "data calls": "has no call log",
    "data explain 3f2a": "3f2a",
    "data undo --rule truecase --out as-before.jsonl": "no rule 'truecase' changed or dropped a row",
    "eval alpaca-eval --judge my-judge --judge-url http://localhost:8000/v1": "eval fetch alpaca-eval",
    "eval compare runs/old:dpo runs/new:dpo --benchmark mt-bench --tolerance 0.2": "nothing to compare",
    "eval fetch mt-bench": "--assets DIR",
    "eval ifeval --data DIR": "eval.benchmarks.ifeval.max_new_tokens=256",
    "eval mt-bench --judge gpt-4-0613 --dry-run": "eval fetch mt-bench",
    "eval mt-bench --judge gpt-4-0613 --max-usd 10": "eval fetch mt-bench",
    "verify your-name/your-model": "no connection to 127.0.0.1:9",
}
"""Commands that speak of what cannot be here, and words of the answer."""

MODELS = ("old", "new")


@pytest.fixture
def finished(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's folder, with the finished small run under the name that the pages use, and no network."""
    for name in ("tiny", *MODELS):
        shutil.copytree(small_run / "runs" / "small", tmp_path / "runs" / name, copy_function=os.link)
    recipe = (small_run / "zephyrctl.yaml").read_text()
    (tmp_path / "zephyrctl.yaml").write_text(recipe.replace("name: small", "name: tiny"))
    write_data(tmp_path)
    write_scores(tmp_path)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


def write_data(folder: Path) -> None:
    """Dialogues, prompts with answers, ratings and pairs, in the published forms."""
    questions = [f"What is {number} and {number}?" for number in range(40)]
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}]
    dialogues = [[{**said[0], "content": question}, {**said[1], "content": "A sum."}] for question in questions]
    write_jsonl(folder / "dialogues.jsonl", [{"messages": turns} for turns in dialogues])
    pairs = [
        {"prompt": question, "chosen": turns, "rejected": [turns[0], {**said[1], "content": "No idea."}]}
        for question, turns in zip(questions, dialogues, strict=True)
    ]
    write_jsonl(folder / "pairs.jsonl", pairs)
    rated = [ultrafeedback_row(question, {"A sum.": "5", "Two.": "3", "No.": "1"}) for question in questions]
    write_jsonl(folder / "ultrafeedback.jsonl", rated)
    for row in rated:
        for completion in row["completions"]:
            del completion["annotations"]
    (folder / "answered-prompts.json").write_text(json.dumps(rated))
    for model in "abcd":
        answers = [
            {"instruction": question, "output": f"{model}: a sum.", "generator": f"model-{model}"}
            for question in questions
        ]
        (folder / f"model-{model}.json").write_text(json.dumps(answers))


def write_scores(folder: Path) -> None:
    """Judgments, verdicts, annotations, questions and results, in their harnesses' forms."""
    rng = Random(0)
    judgments(folder / "gpt-4_single.jsonl", {"model": [rng.randint(1, 10) for _ in range(40)]})
    for name in MODELS:
        judgments(folder / f"{name}.jsonl", {"model": [rng.randint(1, 10) for _ in range(40)]})
    verdicts = [
        {
            "question_id": 81 + number,
            "model_1": "a",
            "model_2": rng.choice("bc"),
            "g1_winner": (winner := rng.choice(["model_1", "model_2"])),
            "g2_winner": winner,
            "judge": ["j", "pair-v2"],
            "turn": 1,
        }
        for number in range(40)
    ]
    write_jsonl(folder / "gpt-4_pair.jsonl", verdicts)
    annotations(folder / "annotations.json", [rng.choice([1, 2]) for _ in range(40)])
    write_questions(folder / "DIR")
    ifeval_file(folder / "DIR")
    (folder / "lm-eval-output").mkdir()
    (folder / "lm-eval-output" / "results.json").write_text(json.dumps(new_file()))


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_in_the_docs_does_what_it_says(command: str, zephyrctl: Command, finished: Path) -> None:
    if command.startswith("recipe init"):
        (finished / "zephyrctl.yaml").unlink()
    outcome = zephyrctl(*shlex.split(command, comments=True))
    if command in REFUSED:
        assert outcome.code not in (0, 2)
        assert REFUSED[command] in outcome.err
    else:
        assert outcome.code == 0, outcome.err


def test_what_is_refused_is_in_the_docs() -> None:
    assert set(REFUSED) - set(commands()) == set()
