"""Whether the `openai` teacher, and a whole `data feedback`, get on with a real server: `transformers serve`."""

import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Command
from zephyrctl import plugins, verdicts
from zephyrctl.builtin.bases import TinyMistral
from zephyrctl.contracts import PluginOptions, Reply, Sampling
from zephyrctl.records import Message, RatedPrompt
from zephyrctl.runs.artifacts import SPLITS
from zephyrctl.runs.run import Run
from zephyrctl.teachers.call_log import CallLog

pytestmark = pytest.mark.slow
BASE = TinyMistral(PluginOptions()).location()


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The embedded base, served on 127.0.0.1; skips where the server's own packages are not installed."""
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason="transformers serve needs `pip install transformers[serving]`")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", BASE, "--device", "cpu"]
    log = tmp_path_factory.mktemp("served") / "log"
    with log.open("w") as file:
        process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=file, stderr=file)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until the server answers."""
    ends = time.monotonic() + 120
    while time.monotonic() < ends and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


def options(base_url: str) -> dict[str, Any]:
    """The teacher's options; this server answers to the very path that it was started with."""
    return {"model": BASE, "base_url": base_url, "key_variable": "NO_KEY", "timeout_seconds": 60}


def ask(base_url: str, *samplings: Sampling) -> list[Reply]:
    """One reply for each sampling."""

    async def talk() -> list[Reply]:
        teacher = plugins.load().teacher("openai", options(base_url))
        try:
            asked = [Message(role="user", content="What is 2 plus 2?")]
            return [await teacher.reply(asked, sampling) for sampling in samplings]
        finally:
            await teacher.close()

    return asyncio.run(talk())


def test_the_teacher_reads_what_it_says(base_url: str) -> None:
    """Greedy twice is the same; the length holds, and the tokens are counted."""
    first, second = ask(base_url, Sampling(max_tokens=12), Sampling(max_tokens=12))
    assert first.text.strip()
    assert first == second
    assert 0 < first.completion_tokens <= 12
    assert first.prompt_tokens > 0
    assert first.model.startswith(BASE)


def test_a_schema_does_no_harm(base_url: str) -> None:
    """The server may know response_format or not: the call comes through."""
    (reply,) = ask(base_url, Sampling(max_tokens=12, json_schema=verdicts.ratings_schema(2)))
    assert reply.text.strip()


def test_a_feedback_run_with_its_answers(base_url: str, zephyrctl: Command, tmp_path: Path) -> None:
    """Every prompt is answered by the server and rated by rules; the second run asks nothing."""
    rows = [json.dumps({"prompt": f"What is {number} plus 2?"}) for number in range(6)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    completer = {"name": "openai", "options": options(base_url), "limits": {"concurrency": 2}}
    feedback = {"completers": [completer], "answers": 1, "max_tokens": 12, "rater": {"name": "offline"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"extends": "tiny", "name": "served", "feedback": feedback}))
    command = ["data", "feedback", "--input", "prompts.jsonl", "--recipe", "recipe.yaml", "--run", "runs/served"]
    outcome = zephyrctl(*command, "--json")
    assert outcome.code == 0, outcome.err
    artifact = Run(tmp_path / "runs" / "served").artifact("feedback")
    assert artifact
    rated = [row for split in SPLITS for row in artifact.read("rated", split, RatedPrompt)]
    assert len(rated) == 6
    assert all(answer.text.strip() and answer.ratings for row in rated for answer in row.completions)
    assert zephyrctl(*command, "--json", "--fresh").code == 0
    with CallLog(tmp_path / "runs" / "served") as ledger:
        assert {row["outcome"]: row["attempts"] for row in ledger.outcomes()} == {"settled": 6}
