"""The published questions for real: a tiny checkpoint answers, and a server on loopback judges by what it is shown."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chat_server import Call, ChatServer, serve
from tests.conftest import Command
from zephyrctl.evaluation.judged_rows import JudgmentRow
from zephyrctl.runs.run import Run

pytestmark = [pytest.mark.real, pytest.mark.slow]


def by_hash(call: Call) -> str:
    """A verdict that hangs on the text alone, in the form that the prompt asks for."""
    number = int(hashlib.sha256(call.text.encode()).hexdigest()[:8], 16)
    if "'rank'" in call.text:
        first = 1 + number % 2
        return f"[{{'model': 'model_1', 'rank': {first}}}, {{'model': 'model_2', 'rank': {3 - first}}}]"
    return f"Rating: [[{1 + number % 10}]]"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """The judge."""
    with serve() as chat:
        chat.answer = by_hash
        yield chat


@pytest.fixture
def folder(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of one's own."""
    shutil.copytree(small_run, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    return tmp_path


def test_mt_bench_of_a_tiny_checkpoint_judged_over_http(
    zephyrctl: Command, folder: Path, server: ChatServer, real_data: Path
) -> None:
    asked = ["--judge", "gpt-4-0613", "--judge-url", server.base_url, "--checkpoint", "dpo", "--assets", real_data]
    outcome = zephyrctl("eval", "mt-bench", *asked, "--set", "eval.mt_bench.max_new_tokens=16", "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json["metrics"]["models"]["dpo"]
    assert (found["rated"], found["unparsed"], found["missing"]) == (160, 0, 0)
    assert {name: one["rated"] for name, one in found["categories"].items()} == dict.fromkeys(found["categories"], 20)
    assert len(server.calls) == 160
    guided = [call for call in server.calls if "Reference" in call.text]
    assert len(guided) == 60, "reasoning, math and coding, both turns"
    judged = list(Run(folder / "runs/small").require("mt-bench", "").read("judgments", "test", JudgmentRow))
    assert sum(row.prompt.startswith("single-math") for row in judged) == 60
    remarks = outcome.json["metrics"]["comparability"]
    assert not any("published file" in line or "questions" in line for line in remarks), "these are the published ones"
    assert any("rules-2024-05-13" in line for line in remarks), "the judge is not, whatever it was asked to be"
    assert outcome.json["metrics"]["contamination"]["hits"] == 0


def test_alpaca_eval_of_a_tiny_checkpoint_judged_over_http(
    zephyrctl: Command, folder: Path, server: ChatServer, real_data: Path
) -> None:
    asked = ["--judge", "gpt-4-0613", "--judge-url", server.base_url, "--checkpoint", "dpo", "--assets", real_data]
    outcome = zephyrctl("eval", "alpaca-eval", *asked, "--set", "eval.alpaca_eval.max_new_tokens=8", "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json["metrics"]["models"]["dpo"]
    assert found["n"] == 805 and found["missing"] == 0
    assert 45 < found["win_rate"] < 55, "a judge that tosses a coin"
    assert found["reference_length"] == pytest.approx(482.4, abs=0.1)
    assert set(found["categories"]) == {"helpful_base", "koala", "oasst", "selfinstruct", "vicuna"}
    assert outcome.json["metrics"]["reference"] == "text_davinci_003"
